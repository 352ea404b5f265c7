package real

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/testenv"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// installed is the data directory with what real microVMs are made of.
const installed = paths.Data(paths.DefaultData)

// guarded is what no test may change: what is installed, and this host's
// accounts and logs.
var guarded = []string{filepath.Join(string(installed), "firecracker"), "/etc"}

// host is a daemon of the test's own, with real microVMs.
type host struct {
	*client.Client
	engine    *engine.Engine
	templates *template.Templates
	cfg       daemon.Config
	addr      string
	log       *testenv.Log
	stop      func()
}

// newHost starts a daemon and ends it with the test. Its data directory holds
// hard links to what is installed, so its jails are its own. When the daemon
// has ended, the test fails if anything is left of it.
func newHost(t testing.TB, options ...func(*daemon.Config)) *host {
	t.Helper()
	testenv.Real(t)
	whole := lookAt
	whole.Process = os.Getpid()
	whole.Guarded = guarded
	before := take(t, whole)

	data := linkData(t)
	h := &host{log: &testenv.Log{}, cfg: daemon.NewConfig()}
	h.cfg.Listen, h.cfg.OnExit = "127.0.0.1:0", daemon.Stop
	// What is kept ready comes and goes behind the test; tests of it ask for it.
	h.cfg.Templates, h.cfg.Shells = false, 0
	h.cfg.DataDir, h.cfg.RunDir = data, paths.Run(t.TempDir())
	h.cfg.Init = installedInit(t)
	h.cfg.Log = slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, o := range options {
		o(&h.cfg)
	}
	d, err := daemon.New(t.Context(), h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	h.engine, h.templates, h.addr = d.Engine(), d.Templates(), d.Addr()
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	h.Client = client.New(d.Addr(), client.WithHTTPClient(&http.Client{Transport: transport}))
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("daemon: %v", err)
		}
		transport.CloseIdleConnections()
		checkState(t, before)
		checkEmpty(t, h)
	})
	t.Cleanup(func() {
		h.stop()
		if t.Failed() {
			t.Logf("daemon's log:\n%s", h.log)
		}
	})
	return h
}

// linkData makes a data directory on the filesystem of the installed one.
func linkData(t testing.TB) paths.Data {
	t.Helper()
	dir, err := os.MkdirTemp(string(installed), "test-") //nolint:usetesting // jails need the filesystem of the packs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, part := range []string{"firecracker", "kernel", "packs"} {
		src := filepath.Join(string(installed), part)
		err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(string(installed), path)
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.MkdirAll(filepath.Join(dir, rel), 0o755)
			}
			return os.Link(path, filepath.Join(dir, rel))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths.Data(dir)
}

// create makes a sandbox that ends with the test, if it has not before.
func (h *host) create(t testing.TB, pack string) string {
	t.Helper()
	id, err := h.Create(t.Context(), pack)
	if err != nil {
		t.Fatalf("create %s: %v", pack, err)
	}
	return id
}

// vmm is the process id of the VMM of a sandbox.
func (h *host) vmm(t testing.TB, id string) int {
	t.Helper()
	in, err := h.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return in.Jail.PID
}

// lookAt is what the oracle looks at in every test: the host as a whole. The
// files of a test's own daemon are asked for once it has ended.
var lookAt = oracle.Config{FirstUser: 0x656d0000, Users: 0x10000}

// takeState is the state of the host, without this process's own.
func takeState(t testing.TB) *oracle.Snapshot {
	t.Helper()
	return take(t, lookAt)
}

func take(t testing.TB, cfg oracle.Config) *oracle.Snapshot {
	t.Helper()
	s, err := oracle.Take(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkState fails the test if anything is wrong with the host that was not
// before.
func checkState(t testing.TB, before *oracle.Snapshot) {
	t.Helper()
	oracle.Check(t, before)
}

func field(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Fields(value)[0]
		}
	}
	return ""
}

// checkEmpty fails the test if a daemon that has ended left files, or anything
// in its log that does not belong there.
func checkEmpty(t testing.TB, h *host) {
	t.Helper()
	for _, dir := range []string{filepath.Join(h.cfg.DataDir.Jails(), "firecracker"), h.cfg.RunDir.Sandboxes(), h.cfg.RunDir.VMs()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
		}
	}
	oracle.Report(t, oracle.Log([]byte(h.log.String())))
}

// openFiles counts what this process has open.
func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// installedInit is the emberd-init that belongs to the emberd on this host.
func installedInit(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("emberd-init")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// pss is the proportional share of a process's memory, in KiB.
func pss(t testing.TB, pid int) int {
	t.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.Atoi(field(rollup, "Pss"))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

// median sorts took.
func median(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}
