package real

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/testenv"
)

// emberd is a daemon that is a process of its own, and can be killed.
type emberd struct {
	*client.Client
	cmd  *exec.Cmd
	data paths.Data
	run  string
	// ready is how long it took until it was.
	ready time.Duration
	log   *testenv.Log
}

// startEmberd starts a daemon on its own directories. It ends with the test, and
// so do its sandboxes.
func startEmberd(t *testing.T, data paths.Data, run string, flags ...string) *emberd {
	t.Helper()
	program, err := exec.LookPath("emberd")
	if err != nil {
		t.Fatal(err)
	}
	d := &emberd{data: data, run: run, log: &testenv.Log{}}
	d.cmd = exec.Command(program, slices.Concat([]string{
		"--listen", "127.0.0.1:0", "--data-dir", string(data), "--run-dir", run, "--on-exit", "stop",
	}, flags)...)
	log, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.end(t, syscall.SIGTERM) })
	addr := regexp.MustCompile(`msg="emberd is ready" addrs="?\[([0-9.:]+)`)
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if m := addr.FindStringSubmatch(lines.Text()); m != nil {
			d.Client, d.ready = client.New(m[1]), time.Since(began)
			go func() {
				for lines.Scan() { // to the daemon's end
					_, _ = d.log.Write(append(lines.Bytes(), '\n'))
				}
			}()
			return d
		}
		_, _ = d.log.Write(append(lines.Bytes(), '\n'))
	}
	t.Log(d.log)
	t.Fatal("the daemon ended before it was ready")
	return nil
}

// end signals the daemon, if it runs, and waits for its end.
func (d *emberd) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(sig); errors.Is(err, os.ErrProcessDone) {
		return
	}
	ended := time.AfterFunc(30*time.Second, func() { _ = d.cmd.Process.Kill() })
	err := d.cmd.Wait()
	if !ended.Stop() || sig == syscall.SIGTERM && err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

// ticks is the CPU time of a process, in hundredths of a second.
func ticks(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	sum := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// A killed daemon leaves a VMM that goes on: its console needs nobody who reads
// it, and takes up no room. Its user id is not given to another VMM while it
// lives, and the next daemon goes on with it.
func TestVMMOutlivesItsDaemon(t *testing.T) {
	h := newHost(t) // looks for what is left when all is over
	data, run := linkData(t), t.TempDir()
	first := startEmberd(t, data, run, "--templates=false", "--pool", "python=0")
	id, err := first.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	in, err := first.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Exec(t.Context(), id, client.Program{Code: "yes >/dev/ttyS0 & while :; do :; done &"}); err != nil {
		t.Fatal(err)
	}
	first.end(t, syscall.SIGKILL)

	vmm := in.Jail.PID
	began, size := ticks(t, vmm), pss(t, vmm)
	another := h.inspect(t, h.create(t, "shell"))
	if another.UID == in.Jail.UID {
		t.Errorf("user %d has two VMMs", another.UID)
	}
	spent := 0
	for deadline := time.Now().Add(20 * time.Second); spent < 100; time.Sleep(100 * time.Millisecond) {
		if spent = ticks(t, vmm) - began; time.Now().After(deadline) {
			t.Errorf("the VMM without a daemon ran for %d0 ms", spent)
			break
		}
	}
	if grown := pss(t, vmm) - size; grown > 4<<10 {
		t.Errorf("the VMM without a daemon grew by %d KiB", grown)
	}

	next := startEmberd(t, data, run, "--templates=false", "--pool", "python=0")
	if got, err := next.Inspect(t.Context(), id); err != nil || got.Jail.PID != vmm || got.Jail.UID != in.Jail.UID {
		t.Errorf("the next daemon has VMM %d of user %d, want %d of %d: %v", got.Jail.PID, got.Jail.UID, vmm, in.Jail.UID, err)
	}
	// Somebody reads its console again, or it would be full by now.
	if _, err := next.Exec(t.Context(), id, client.Program{Code: "echo it goes on"}); err != nil {
		t.Error(err)
	}
}
