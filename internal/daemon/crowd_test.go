package daemon

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon/daemontest"
)

// A daemon that may open few files, and to which many more connect than that,
// answers who asks for something, does not spin, and has its files back when they
// are gone.
func TestMoreConnectionsThanFiles(t *testing.T) {
	const files, connections = 64, 500
	s := fakeStand(t)
	d := daemontest.Start(t, daemontest.Order{Dir: s.Dir, Files: files})
	d.AwaitReady()
	id, err := d.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	before := filesOf(t, d.Cmd.Process.Pid)
	began, spent := time.Now(), cpuOf(t, d.Cmd.Process.Pid)
	conns := make([]net.Conn, 0, connections)
	for range connections {
		conn, err := net.DialTimeout("tcp", d.Addr, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // a connection for each request
	c := client.New(d.Addr, client.WithHTTPClient(fresh))
	for time.Since(began) < 2*time.Second {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := c.Healthy(ctx); err != nil {
			t.Errorf("health: %v", err)
		}
		if res, err := c.Exec(ctx, id, client.Program{Code: "exit 5"}); err != nil || res.ExitCode != 5 {
			t.Errorf("exec: %+v, %v", res, err)
		}
		cancel()
		time.Sleep(100 * time.Millisecond)
	}
	if busy := cpuOf(t, d.Cmd.Process.Pid) - spent; busy > time.Since(began)/2 {
		t.Errorf("it took %v of %v", busy, time.Since(began))
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	await(t, "its files", func() bool { return filesOf(t, d.Cmd.Process.Pid) <= before+1 })
	if again, err := d.Create(t.Context(), "shell"); err != nil {
		t.Errorf("create %s: %v", again, err)
	}
	d.Stop()
}

func TestConnectionsOfFiles(t *testing.T) {
	for files, want := range map[uint64]int{0: 1, 64: 16, 1024: 256, 1 << 20: mostConns} {
		if got := connsOf(files); got != want {
			t.Errorf("%d connections with %d files, want %d", got, files, want)
		}
	}
}

// filesOf is how many files a process has open.
func filesOf(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// cpuOf is how much of a CPU a process has used.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	ticks := 0
	for _, field := range fields[11:13] { // in user mode, and in the kernel
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}
