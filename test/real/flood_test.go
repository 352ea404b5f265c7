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

// startProcess starts the emberd of this host and ends it with the test, which
// fails if anything is left of it.
func startProcess(t *testing.T) *process {
	t.Helper()
	testenv.Real(t)
	before := takeState(t)
	p := &process{data: linkData(t), logPath: filepath.Join(t.TempDir(), "log")}
	log, err := os.Create(p.logPath)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("emberd", "--listen", "127.0.0.1:0", "--log-level", "debug", "--boot-timeout", "2m",
		"--data-dir", string(p.data), "--run-dir", filepath.Join(t.TempDir(), "run"))
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

// connects tries to reach the host from the guest, by as many connections as
// four seconds allow, and prints how many there were and how many were taken.
const connects = `
import socket, time
end, tried, taken, port = time.monotonic() + 4, 0, 0, 0
while time.monotonic() < end:
    port = port % 65535 + 1
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

// Whatever a guest pours out, the daemon stays small and answers, and so does
// the sandbox.
func TestFloods(t *testing.T) {
	d := startProcess(t)
	ids := map[string]string{}
	for _, pack := range []string{"shell", "python"} {
		id, err := d.Create(t.Context(), pack)
		if err != nil {
			t.Fatal(err)
		}
		ids[pack] = id
	}
	files, err := oracle.Files(d.pid)
	if err != nil {
		t.Fatal(err)
	}
	disk := takeDisk(t, d.data)
	health := oracle.Watch(t.Context(), 100*time.Millisecond, d.Healthy)

	for _, tt := range []struct {
		name, pack, code string
		timeout          time.Duration
		check            func(t *testing.T, res client.Result)
	}{
		{"console", "shell", "yes 'level=INFO msg=forged \x1b[2J' >/dev/ttyS0", 3 * time.Second, nil},
		// What is not UTF-8 is sent twice.
		{"output", "shell", `head -c 17M /dev/zero | tr '\0' '\377'`, 0, func(t *testing.T, res client.Result) {
			if len(res.Stdout) != 16<<20 || !res.StdoutTruncated || res.ExitCode != 0 {
				t.Errorf("%d bytes, truncated %v, exit %d", len(res.Stdout), res.StdoutTruncated, res.ExitCode)
			}
		}},
		{"connections", "python", connects, 0, func(t *testing.T, res client.Result) {
			var tried, taken int
			if _, err := fmt.Sscan(string(res.Stdout), &tried, &taken); err != nil || tried < 10 || taken > 0 {
				t.Errorf("connections: %q, want many tried and none taken", res.Stdout)
			}
			t.Logf("%d connections tried, %d taken", tried, taken)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			grown := peak(t, d.pid)
			res, err := d.Exec(t.Context(), ids[tt.pack], client.Program{Code: tt.code, Timeout: tt.timeout})
			if err != nil {
				t.Fatal(err)
			}
			if tt.check != nil {
				tt.check(t, res)
			}
			g := grown()
			t.Logf("%d bytes of output in %v, the daemon grew by %d KiB", len(res.Stdout), res.Duration, g>>10)
			if g > maxGrowth {
				t.Errorf("the daemon grew by %d KiB, %d are allowed", g>>10, maxGrowth>>10)
			}
		})
	}
	t.Run("slow client", func(t *testing.T) { readSlowly(t, d, ids["shell"]) })

	for _, id := range ids {
		if _, err := d.Exec(t.Context(), id, client.Program{Code: "1"}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
	p := health.Stop()
	t.Logf("/healthz: %v", p)
	oracle.Report(t, p.Findings("/healthz", 2*time.Second))
	checkOpenFiles(t, d.pid, files)
	if now := takeDisk(t, d.data); now != disk {
		t.Errorf("the data directory holds %d bytes, it held %d", now, disk)
	}
}

// maxGrowth is what a flood may cost the daemon: the 16 MiB that a result can
// hold, and what the runtime takes for as much again.
const maxGrowth = 32 << 20

// readSlowly has a client ask for a large answer and read hardly any of it.
func readSlowly(t *testing.T, d *process, id string) {
	t.Helper()
	grown := peak(t, d.pid)
	const body = `{"code":"head -c 4000000 /dev/zero | tr '\\0' x"}`
	resp, err := http.Post("http://"+d.addr+"/sandboxes/"+id+"/exec", "", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if g := grown(); g > maxGrowth {
		t.Errorf("the daemon grew by %d KiB", g>>10)
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
