package daemon

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// runVictim is a daemon over fake VMMs, in a process of its own that a test may
// break. One that is asked to end takes its sandboxes with it.
func runVictim(o daemontest.Order, faults *fault.Set, say func(addr string)) error {
	if o.Files > 0 {
		few := unix.Rlimit{Cur: o.Files, Max: o.Files}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
			return err
		}
	}
	cfg := configIn(o.Dir)
	cfg.Templates, cfg.Shells, cfg.Faults = o.Templates, 0, faults
	if o.Pool {
		cfg.Pool = map[string]pool.Bounds{"shell": {Min: 0, Max: 1}}
	}
	if o.Listen != "" {
		cfg.Listen = o.Listen
	}
	if o.Keep {
		cfg.OnExit = Keep
	}
	asked, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d, err := New(asked, cfg)
	if err != nil {
		return err
	}
	say(d.Addr())
	return d.Run(asked)
}

// shortDir is a directory whose sockets fit the 107 bytes of a socket address,
// which a test's own directory may not.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// fakeStand is a directory where daemons over fake VMMs are broken.
func fakeStand(t testing.TB) *daemontest.Stand {
	t.Helper()
	dir := shortDir(t)
	fctest.Data(t, filepath.Join(dir, "data"))
	return standIn(t, dir)
}

// standIn is dir as such a place.
func standIn(t testing.TB, dir string) *daemontest.Stand {
	t.Helper()
	t.Cleanup(func() { // of a test that failed, once its daemons are gone
		for _, fake := range fakesIn(t, dir) {
			if pid, err := strconv.Atoi(fake); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return &daemontest.Stand{
		Dir: dir, Quick: 10 * time.Second,
		VMMs: func() int { return len(fakesIn(t, dir)) },
		Left: func() (left []string) {
			run, data := paths.Run(filepath.Join(dir, "run")), paths.Data(filepath.Join(dir, "data"))
			for _, at := range []string{dir, run.Sandboxes(), run.VMs(), data.Templates()} {
				entries, err := os.ReadDir(at)
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				for _, e := range entries {
					_, vm := sandbox.ParseVMID(e.Name())
					partial := strings.HasSuffix(e.Name(), ".partial")
					if vm || partial || at == run.Sandboxes() || at == run.VMs() {
						left = append(left, filepath.Join(at, e.Name()))
					}
				}
			}
			return left
		},
	}
}

// fakesIn are the fakes that work in directories below dir.
func fakesIn(t testing.TB, dir string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, dir+"/vm-") {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

// Whatever step a daemon is at when it fails, takes long or is killed.
func TestDaemonBrokenAtEachStep(t *testing.T) {
	for _, point := range daemontest.Points {
		t.Run(fmt.Sprintf("%s/%s/%d", point.Name, point.Reach, point.Visit), func(t *testing.T) {
			t.Parallel()
			fakeStand(t).Sweep(t, point)
		})
	}
}
