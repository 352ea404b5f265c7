package real

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

// start starts a program and does not wait.
func (h *host) start(t *testing.T, id string, p client.Program, stdinOpen bool) string {
	t.Helper()
	ex, err := h.StartExec(t.Context(), id, p, stdinOpen)
	if err != nil {
		t.Fatal(err)
	}
	return ex
}

// awaitEnd waits until a program has ended.
func (h *host) awaitEnd(t *testing.T, id, ex string, limit time.Duration) rest.Exec {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		state, err := h.ExecState(t.Context(), id, ex)
		if err != nil {
			t.Fatal(err)
		}
		if state.State == "exited" {
			return state
		}
		if time.Now().After(deadline) {
			t.Fatalf("it still runs after %v: %+v", limit, state)
		}
	}
}

// killAll ends the programs that run in a sandbox, as well as that goes.
func (h *host) killAll(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	list, err := h.Execs(ctx, id)
	if err != nil {
		t.Logf("what ran in %s was not ended: %v", id, err)
	}
	for _, ex := range list {
		if ex.State == "running" {
			_ = h.Signal(ctx, id, ex.ExecID, "KILL")
		}
	}
}

// readAll reads the output of a program from offset to its end.
func (h *host) readAll(t *testing.T, id, ex string, from client.OutputStream, offset int64) string {
	t.Helper()
	out, err := h.Output(t.Context(), id, ex, from, offset, true)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	b, err := io.ReadAll(out)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// counter counts to n, a number each hundredth of a second.
const counter = "import time\nfor i in range(%d): print(i, flush=True); time.sleep(0.01)\nimport sys; sys.exit(7)"

// counted is what it prints.
func counted(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// cutting is a transport whose answers break off after some bytes, again and
// again.
type cutting struct {
	of    http.RoundTripper
	after int64
	cuts  int
}

func (c *cutting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.of.RoundTrip(r)
	if err == nil && strings.HasSuffix(r.URL.Path, "/output") {
		c.cuts++
		resp.Body = &cut{resp.Body, c.after}
	}
	return resp, err
}

type cut struct {
	io.ReadCloser
	left int64
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left == 0 {
		_ = c.Close()
		return 0, errors.New("the connection was cut")
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// A program that is started and left is followed over connections that break,
// without a byte missing or twice, and its exit code is its own.
func TestExecGoesOnOverBrokenConnections(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "python")
	const n = 1000
	ex := h.start(t, id, client.Program{Code: fmt.Sprintf(counter, n)}, false)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	cutter := &cutting{of: transport, after: 333}
	c := client.New(h.addr, client.WithHTTPClient(&http.Client{Transport: cutter}))
	var got bytes.Buffer
	at, err := c.CopyOutput(t.Context(), &got, id, ex, client.Stdout, 0, client.Resume{Patience: 30 * time.Second})
	if want := counted(n); err != nil || got.String() != want || at != int64(len(want)) {
		t.Errorf("%d bytes of %d, at %d, %v", got.Len(), len(want), at, err)
	}
	if state := h.awaitEnd(t, id, ex, 10*time.Second); *state.ExitCode != 7 || state.Stdout.FirstOffset != 0 {
		t.Errorf("%+v", state)
	}
	t.Logf("%d connections", cutter.cuts)
}

// A client that goes away leaves a program that goes on, counts, and is found.
func TestClientThatGoesAwayLeavesItsProgram(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "shell")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := h.Exec(ctx, id, client.Program{Code: "echo begun; sleep 4; echo ended; exit 9", Timeout: time.Minute}); err == nil {
		t.Fatal("it did not take its time")
	}
	list, err := h.Execs(t.Context(), id)
	if err != nil || len(list) != 1 || list[0].State != "running" {
		t.Fatalf("%+v, %v", list, err)
	}
	if sb, err := h.Get(t.Context(), id); err != nil || !sb.IdleExpiresAt.IsZero() {
		t.Errorf("it does not count: %+v, %v", sb, err)
	}
	if got := h.readAll(t, id, list[0].ExecID, client.Stdout, 0); got != "begun\nended\n" {
		t.Errorf("%q", got)
	}
	if state := h.awaitEnd(t, id, list[0].ExecID, 10*time.Second); *state.ExitCode != 9 {
		t.Errorf("%+v", state)
	}

	// One that never ends is ended by its limit, with all that it started.
	ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := h.Exec(ctx, id, client.Program{Code: "export MARK=gone; setsid sleep 600 & sleep 600", Timeout: 4 * time.Second}); err == nil {
		t.Fatal("a program that sleeps for minutes ended")
	}
	list, err = h.Execs(t.Context(), id)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if state := h.awaitEnd(t, id, list[1].ExecID, 20*time.Second); state.Error != client.TimedOut || *state.ExitCode != -1 {
		t.Errorf("%+v", state)
	}
	res, err := h.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf(findMarked, "gone")})
	if err != nil || len(res.Stdout) > 0 {
		t.Errorf("still there: %q, %v", res.Stdout, err)
	}
}

// Output that is too old is said to be gone, and what is left is what was written.
func TestOutputRing(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "python")
	const size = 5 << 20
	ex := h.start(t, id, client.Program{Code: fmt.Sprintf("import sys\nfor i in range(%d): sys.stdout.buffer.write(i.to_bytes(8, 'big'))", size/8)}, false)
	state := h.awaitEnd(t, id, ex, time.Minute)
	if state.Stdout.EndOffset != size || size-state.Stdout.FirstOffset > 1<<20 || size-state.Stdout.FirstOffset < 900<<10 {
		t.Errorf("%+v", state.Stdout)
	}
	_, err := h.Output(t.Context(), id, ex, client.Stdout, 0, false)
	gone, ok := errors.AsType[*client.Error](err)
	if !ok || gone.Status != http.StatusGone || gone.FirstOffset != state.Stdout.FirstOffset {
		t.Fatalf("%+v", err)
	}
	want := make([]byte, 0, size)
	for i := range uint64(size / 8) {
		want = append(want, byte(i>>56), byte(i>>48), byte(i>>40), byte(i>>32), byte(i>>24), byte(i>>16), byte(i>>8), byte(i))
	}
	if got := h.readAll(t, id, ex, client.Stdout, gone.FirstOffset); got != string(want[gone.FirstOffset:]) {
		t.Errorf("%d bytes from %d on are not what was written", len(got), gone.FirstOffset)
	}
	// 16 programs fill all the room there is, and the agent is none the worse.
	var running []string
	for range 16 {
		running = append(running, h.start(t, id, client.Program{Code: "import sys\nfor i in range(48): sys.stdout.write('x' * 65536); sys.stderr.write('y' * 65536)\nprint(1)"}, false))
	}
	for _, ex := range running {
		if state := h.awaitEnd(t, id, ex, 2*time.Minute); *state.ExitCode != 0 || state.Stdout.EndOffset != 48*65536+2 || state.Stderr.EndOffset != 48*65536 {
			t.Errorf("%+v", state)
		}
	}
	if res, err := h.Exec(t.Context(), id, client.Program{Code: "print(6*7)"}); err != nil || string(res.Stdout) != "42\n" {
		t.Errorf("%q, %v", res.Stdout, err)
	}
}

func TestStdinAndSignals(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "python")
	ex := h.start(t, id, client.Program{Code: echo, Stdin: []byte("one\n")}, true)
	large := bytes.Repeat([]byte("0123456\n"), 100<<10)
	for _, in := range [][]byte{[]byte("two\n"), large} {
		if err := h.Feed(t.Context(), id, ex, in, false); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) { // until the rest is read
		if err = h.Feed(t.Context(), id, ex, large, true); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	var e *client.Error
	if err := h.Feed(t.Context(), id, ex, []byte("x"), false); !errors.As(err, &e) || e.Code != "exec_ended" {
		t.Errorf("input after its end: %v", err)
	}
	state := h.awaitEnd(t, id, ex, 30*time.Second)
	if want := int64(8 + 2*len(large)); state.Stdout.EndOffset != want || state.StdinBytes != want || *state.ExitCode != 0 {
		t.Errorf("%+v, want %d bytes", state, want)
	}

	for _, tt := range []struct {
		code, signal string
		exit         int
	}{
		{"import time; print(1, flush=True); time.sleep(600)", "TERM", 143},
		{"import time; print(1, flush=True)\ntry: time.sleep(600)\nexcept KeyboardInterrupt: raise SystemExit(5)", "INT", 5},
		{"import os, signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); os.fork(); time.sleep(600)", "KILL", 137},
	} {
		ex := h.start(t, id, client.Program{Code: tt.code}, false)
		out, err := h.Output(t.Context(), id, ex, client.Stdout, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		_ = out.Close()
		if err := h.Signal(t.Context(), id, ex, tt.signal); err != nil {
			t.Fatal(err)
		}
		if state := h.awaitEnd(t, id, ex, 20*time.Second); *state.ExitCode != tt.exit {
			t.Errorf("%s: %+v, want %d", tt.signal, state, tt.exit)
		}
	}
}

// Many short programs each have their own exit code, and streams that are read at
// the same time each have their own bytes.
func TestExecsAtLoad(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "shell")
	const programs, streams = 500, 20
	began := time.Now()
	var wg sync.WaitGroup
	work := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range work {
				want := i % 200
				res, err := h.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf("exit %d", want)})
				if err != nil || res.ExitCode != want || res.Err != "" {
					t.Errorf("exit %d, %q, %v, want %d", res.ExitCode, res.Err, err, want)
				}
			}
		})
	}
	for i := range programs {
		work <- i
	}
	close(work)
	wg.Wait()
	t.Logf("%d programs in %v", programs, time.Since(began))

	began = time.Now()
	turn := make(chan struct{}, 10) // fewer than the sandbox allows
	for i := range streams {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			res, err := h.Exec(t.Context(), id, client.Program{
				Code: fmt.Sprintf("seed=%d; yes $seed | head -c 1048576 | tee /dev/stderr | sha256sum > /tmp/sum$seed; cut -c1-64 /tmp/sum$seed", i), Timeout: 3 * time.Minute,
			})
			if err != nil || res.ExitCode != 0 {
				t.Errorf("exit %d, %v", res.ExitCode, err)
				return
			}
			sum := sha256.Sum256(res.Stderr)
			if got := strings.TrimSpace(string(res.Stdout)); len(res.Stderr) != 1<<20 || got != hex.EncodeToString(sum[:]) {
				t.Errorf("stream %d: %d bytes of another sum than %s", i, len(res.Stderr), got)
			}
		})
	}
	wg.Wait()
	t.Logf("%d streams of 1 MiB in %v", streams, time.Since(began))
}

// endless counts until its input ends, and exits with 7.
const endless = `import select, sys
i = 0
while not select.select([0], [], [], 0.01)[0]:
    print(i, flush=True)
    i += 1
sys.exit(7)`

// A daemon that is killed takes no program with it: its output goes on where the
// client was, without a byte missing or twice, and its exit code is its own. So
// does a program whose client waited for it.
func TestKilledDaemonLosesNoByte(t *testing.T) {
	data, run := small(t)
	flags := append([]string{"--on-exit", "keep"}, plain...)
	d := startEmberd(t, data, run, flags...)
	id, err := d.Create(t.Context(), "python")
	if err != nil {
		t.Fatal(err)
	}
	ex, err := d.StartExec(t.Context(), id, client.Program{Code: endless}, true)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	at := int64(0)
	rounds := span(3, 20)
	for round := range rounds {
		answer := make(chan error, 1)
		go func() {
			_, err := d.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf("import time; time.sleep(3); raise SystemExit(%d)", 20+round)})
			answer <- err
		}()
		out, err := d.Output(t.Context(), id, ex, client.Stdout, at, true)
		if err != nil {
			t.Fatal(err)
		}
		awaitRunning(t, d, id, 2)
		if _, err := io.CopyN(&got, out, 200); err != nil {
			t.Fatal(err)
		}
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			d.end(t, syscall.SIGKILL)
		}()
		if _, err := io.Copy(&got, out); err == nil {
			t.Error("what was broken off looks like an end")
		}
		<-killed
		at = out.Offset()
		_ = out.Close()
		if err := <-answer; err == nil {
			t.Error("a program that still runs has a result")
		}
		d = startEmberd(t, data, run, flags...)
		checkFound(t, d, id, round)
	}
	if err := d.Feed(t.Context(), id, ex, nil, true); err != nil {
		t.Fatal(err)
	}
	end, err := d.CopyOutput(t.Context(), &got, id, ex, client.Stdout, at, client.Resume{Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Count(got.String(), "\n")
	if got.String() != counted(lines) || int64(got.Len()) != end {
		t.Errorf("%d bytes up to %d are not what the program wrote", got.Len(), end)
	}
	state, err := d.ExecState(t.Context(), id, ex)
	if err != nil || state.ExitCode == nil || *state.ExitCode != 7 {
		t.Errorf("%+v, %v", state, err)
	}
	t.Logf("%d lines over %d daemons", lines, rounds+1)
	if err := d.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// awaitRunning waits until so many programs run in a sandbox.
func awaitRunning(t *testing.T, d *emberd, id string, want int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		list, err := d.Execs(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		running := 0
		for _, ex := range list {
			if ex.State == "running" {
				running++
			}
		}
		if running == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d programs run, want %d", running, want)
		}
	}
}

// checkFound waits for the end of the program whose client the last daemon's end
// cut off, which exits with 20 more than the round.
func checkFound(t *testing.T, d *emberd, id string, round int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		list, err := d.Execs(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, ex := range list {
			if ex.ExitCode != nil && *ex.ExitCode == 20+round {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the program of round %d is not found: %+v", round, list)
		}
	}
}
