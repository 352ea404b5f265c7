package real

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/testenv"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// process is an emberd of its own process, so that its memory and its
// descriptors are nobody else's.
type process struct {
	*client.Client
	addr    string
	pid     int
	data    paths.Data
	logPath string
}

var listening = regexp.MustCompile(`msg="emberd is ready".*?(127\.0\.0\.1:\d+)`)

// startProcess starts the emberd of this host, with some more flags, and ends it
// with the test, which fails if anything is left of it.
func startProcess(t *testing.T, flags ...string) *process {
	t.Helper()
	testenv.Real(t)
	before := takeState(t)
	p := &process{data: linkData(t), logPath: filepath.Join(t.TempDir(), "log")}
	log, err := os.Create(p.logPath)
	if err != nil {
		t.Fatal(err)
	}
	flags = append([]string{
		"--listen", "127.0.0.1:0", "--on-exit", "stop", "--log-level", "debug", "--boot-timeout", "2m", "--pool", "python=0", "--templates=false", "--shells", "0",
		"--data-dir", string(p.data), "--run-dir", filepath.Join(t.TempDir(), "run"),
	}, flags...)
	cmd := exec.Command("emberd", flags...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("emberd: %v", err)
		}
		_ = log.Close()
		checkState(t, before)
		oracle.Report(t, oracle.Log(p.log(t)))
		if t.Failed() {
			t.Logf("daemon's log:\n%s", p.log(t))
		}
	})
	deadline := time.Now().Add(20 * time.Second)
	for p.addr == "" {
		if m := listening.FindSubmatch(p.log(t)); m != nil {
			p.addr = string(m[1])
		} else if time.Now().After(deadline) {
			t.Fatalf("emberd does not start:\n%s", p.log(t))
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.Client = client.New(p.addr)
	return p
}

func (p *process) log(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(p.logPath)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// peak follows a process's memory until the function it returns is called,
// which tells by how many bytes it has grown at most.
func peak(t *testing.T, pid int) (grown func() int64) {
	t.Helper()
	base, err := oracle.RSS(pid)
	if err != nil {
		t.Fatal(err)
	}
	var most atomic.Int64
	most.Store(base)
	p := oracle.Watch(t.Context(), 50*time.Millisecond, func(context.Context) error {
		rss, err := oracle.RSS(pid)
		most.Store(max(most.Load(), rss))
		return err
	})
	return func() int64 {
		for _, err := range p.Stop().Errs {
			t.Error(err)
		}
		return most.Load() - base
	}
}

// connects tries to reach the host from the guest, port after port, for some
// seconds, and prints how many connections there were and how many were taken.
const connects = `
import socket, time
end, tried, taken, port = time.monotonic() + %d, 0, 0, 0
while time.monotonic() < end:
    port = port %% 65535 + 1
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(1)
    tried += 1
    try:
        s.connect((2, port))
        taken += 1
    except OSError:
        pass
    s.close()
print(tried, taken)
`

// maxGrowth is what all floods together may cost the daemon.
const maxGrowth = 32 << 20

// lineSize is the length of a line without an end: more than a result can hold.
func lineSize() int { return span(17<<20, 1<<30) }

// floods are what the sandboxes of [TestFloods] pour out, all at once, each for as
// long as it says. What is read of them is checked.
func floods(length time.Duration) []flood {
	seconds := int(length.Seconds())
	return []flood{
		{"zeros on the console", "shell", "cat /dev/zero >/dev/ttyS0", length, nil},
		{"a forged log on the console", "shell", "yes 'level=INFO msg=forged \x1b[2J' >/dev/ttyS0", length, nil},
		{"the kernel's messages", "shell", "while :; do echo 'forged \x1b[2J' >/dev/kmsg; done", length, nil},
		{"lines", "lines", "yes", length, func(t *testing.T, res client.Result) { checkCut(t, res.Stdout, res.StdoutTruncated, res.Err) }},
		{"zeros", "lines", "cat /dev/zero >&2", length, func(t *testing.T, res client.Result) { checkCut(t, res.Stderr, res.StderrTruncated, res.Err) }},
		{"one line", "line", fmt.Sprintf(`head -c %d /dev/zero | tr '\0' '\377'`, lineSize()), 0, func(t *testing.T, res client.Result) {
			if len(res.Stdout) != 16<<20 || !res.StdoutTruncated || res.ExitCode != 0 {
				t.Errorf("%d bytes, truncated %v, exit %d", len(res.Stdout), res.StdoutTruncated, res.ExitCode)
			}
		}},
		{"connections", "python", fmt.Sprintf(connects, seconds), 0, func(t *testing.T, res client.Result) {
			var tried, taken int
			if _, err := fmt.Sscan(string(res.Stdout), &tried, &taken); err != nil || tried < 10 || taken > 0 {
				t.Errorf("connections: %q, want many tried and none taken", res.Stdout)
			}
			t.Logf("%d connections tried, %d taken", tried, taken)
		}},
	}
}

// flood is a program that never stops writing, and the sandbox that it runs in.
type flood struct {
	name, in, code string
	timeout        time.Duration
	check          func(t *testing.T, res client.Result)
}

// outputLimit is what the results of one sandbox hold, in bytes, so that all of
// them together fit into what the floods may cost.
const outputLimit = 2 << 20

// checkCut looks for output that was cut at the limit, of a program that was ended
// by its limit of time. In seconds it may not come to that.
func checkCut(t *testing.T, output []byte, truncated bool, why string) {
	t.Helper()
	if len(output) > outputLimit || truncated != (len(output) == outputLimit) || *long && !truncated || why == "" {
		t.Errorf("%d bytes, truncated %v, %q; want %d, truncated, by a limit of time", len(output), truncated, why, outputLimit)
	}
}

// Whatever guests pour out, the daemon stays small and answers, and so do the
// sandboxes.
func TestFloods(t *testing.T) {
	d := startProcess(t)
	length := span(10*time.Second, 10*time.Minute)
	ids := map[string]string{}
	for name, of := range map[string]struct {
		pack   string
		output int
	}{"shell": {"shell", 0}, "lines": {"shell", outputLimit}, "line": {"shell", 0}, "python": {"python", 0}} {
		id, err := d.Create(t.Context(), of.pack, client.WithLimits(client.Limits{OutputBytes: of.output}))
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = id
	}
	files, err := oracle.Files(d.pid)
	if err != nil {
		t.Fatal(err)
	}
	disk := takeDisk(t, d.data)
	grown := peak(t, d.pid)
	health := oracle.Watch(t.Context(), 100*time.Millisecond, d.Healthy)

	var pouring sync.WaitGroup
	for _, f := range floods(length) {
		pouring.Go(func() {
			res, err := d.Exec(t.Context(), ids[f.in], client.Program{Code: f.code, Timeout: f.timeout})
			if err != nil {
				t.Errorf("%s: %v", f.name, err)
				return
			}
			t.Logf("%s: %d and %d bytes of output in %v", f.name, len(res.Stdout), len(res.Stderr), res.Duration)
			if f.check != nil {
				f.check(t, res)
			}
		})
	}
	for _, every := range []time.Duration{0, span(50*time.Millisecond, time.Second)} {
		pouring.Go(func() { readSlowly(t, d, ids["lines"], length, every) })
	}
	pouring.Wait()

	p, g := health.Stop(), grown()
	t.Logf("/healthz: %v; the daemon grew by %d KiB", p, g>>10)
	oracle.Report(t, p.Findings("/healthz", span(2*time.Second, time.Second)))
	if g > maxGrowth {
		t.Errorf("the daemon grew by %d KiB, %d are allowed", g>>10, maxGrowth>>10)
	}
	for name, id := range ids {
		if _, err := d.Exec(t.Context(), id, client.Program{Code: "1"}); err != nil {
			t.Errorf("%s: afterwards: %v", name, err)
		}
	}
	checkOpenFiles(t, d.pid, files)
	if now := takeDisk(t, d.data); now != disk {
		t.Errorf("the data directory holds %d bytes, it held %d", now, disk)
	}
	deleteUnderFlood(t, d, ids)
}

// deleteUnderFlood deletes each sandbox while it pours out what it can.
func deleteUnderFlood(t *testing.T, d *process, ids map[string]string) {
	t.Helper()
	var pouring sync.WaitGroup
	defer pouring.Wait()
	for _, f := range floods(time.Minute) {
		id, ok := ids[f.in]
		if !ok {
			continue
		}
		delete(ids, f.in)
		// It is cut off, and how is its own affair.
		pouring.Go(func() { _, _ = d.Exec(t.Context(), id, client.Program{Code: f.code, Timeout: time.Minute}) })
		time.Sleep(time.Second)
		in, err := d.Inspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := d.Delete(t.Context(), id); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
		checkGone(t, f.name, in.Jail.PID, began, 5*time.Second)
	}
}

// readSlowly has a client ask for a large answer and read a byte of it now and
// then, or none if every is zero. The daemon may end the connection before the
// client does.
func readSlowly(t *testing.T, d *process, id string, length, every time.Duration) {
	// What is not UTF-8 is sent twice, which is more than a connection holds.
	const body = `{"code":"head -c 4000000 /dev/zero | tr '\\0' '\\377'"}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+d.addr+"/sandboxes/"+id+"/exec", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	end := time.After(length)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Errorf("slow client: %v", err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if every == 0 {
		<-end
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-end:
			t.Logf("slow client: %d bytes in %v", n, length)
			return
		case <-tick.C:
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
			t.Logf("slow client: ended after %d bytes: %v", n, err)
			return
		}
	}
}

// takeDisk adds up the bytes of a data directory.
func takeDisk(t *testing.T, data paths.Data) int64 {
	t.Helper()
	var size int64
	err := filepath.WalkDir(string(data), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// checkOpenFiles fails the test if a process has more open than before, but for the
// few connections of this test's own clients.
func checkOpenFiles(t *testing.T, pid int, before map[string]int) {
	t.Helper()
	const clients = 8
	now, err := oracle.Files(pid)
	if err != nil {
		t.Fatal(err)
	}
	for class, n := range now {
		allowed := before[class]
		if class == "socket" {
			allowed += clients
		}
		if n > allowed {
			t.Errorf("%d descriptors of class %s, were %d", n, class, before[class])
		}
	}
}
