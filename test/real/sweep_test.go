package real

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// runVictim is a daemon that a test may break, in a process of its own. One that
// is asked to end takes its sandboxes with it.
func runVictim(o daemontest.Order, faults *fault.Set, say func(addr string)) error {
	cfg := daemon.NewConfig()
	cfg.Listen, cfg.OnExit, cfg.BootTimeout = "127.0.0.1:0", daemon.Stop, 3*time.Minute
	cfg.DataDir, cfg.RunDir = paths.Data(o.Dir), paths.Run(filepath.Join(o.Dir, "run"))
	cfg.Init = os.Getenv(initEnv)
	cfg.Templates, cfg.Shells, cfg.Faults = o.Templates, 0, faults
	if o.Keep {
		cfg.OnExit = daemon.Keep
	}
	asked, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d, err := daemon.New(asked, cfg)
	if err != nil {
		return err
	}
	say(d.Addr())
	return d.Run(asked)
}

// initEnv tells a test binary that is a daemon what is PID 1 of its microVMs.
const initEnv = "EMBERD_TEST_INIT"

// Whatever step of the jail a daemon is at when it fails, takes long or is
// killed. The steps of everything else are broken over fake VMMs.
func TestJailBrokenAtEachStep(t *testing.T) { sweep(t, daemontest.JailPoints) }

// The same for the steps of a network interface. Only with -long all of them are
// swept: that each is undone when it fails is shown without a VM, too.
func TestNetworkBrokenAtEachStep(t *testing.T) {
	points := daemontest.NetworkPoints
	if !*long {
		points = points[len(points)-1:]
	}
	sweep(t, points)
}

func sweep(t *testing.T, points []daemontest.Point) {
	t.Helper()
	data, _ := small(t)
	t.Setenv(initEnv, installedInit(t))
	jails := filepath.Join(data.Jails(), "firecracker")
	vms := func() (paths []string) {
		entries, err := os.ReadDir(jails)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if _, ok := sandbox.ParseVMID(e.Name()); ok {
				paths = append(paths, filepath.Join(jails, e.Name()))
			}
		}
		return paths
	}
	stand := &daemontest.Stand{
		Dir: string(data), Quick: time.Minute,
		VMMs: func() int { return len(vms()) }, Left: vms,
	}
	for _, point := range points {
		t.Run(point.Name, func(t *testing.T) {
			before := takeState(t)
			stand.Sweep(t, point)
			checkState(t, before)
		})
	}
}
