package engine

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/x/fault"
)

func TestMain(m *testing.M) {
	fctest.Main()
	goleak.VerifyTestMain(m)
}

// fixture is an engine over fake VMMs.
type fixture struct {
	*Engine
	t        *testing.T
	launcher *fctest.Launcher
	faults   *fault.Set
	run      paths.Run
	records  *store.Store
	cfg      Config
	cold     provision.ColdConfig
}

func newFixture(t *testing.T, options ...func(*Config, *provision.ColdConfig)) *fixture {
	t.Helper()
	f := makeFixture(t, options...)
	t.Cleanup(f.close)
	return f
}

// makeFixture is newFixture for who closes it.
func makeFixture(t *testing.T, options ...func(*Config, *provision.ColdConfig)) *fixture {
	t.Helper()
	f := &fixture{t: t, launcher: &fctest.Launcher{Dir: shortDir(t)}, faults: &fault.Set{}, run: paths.Run(t.TempDir())}
	data := fctest.Data(t, filepath.Join(f.launcher.Dir, "data"))
	packs, err := pack.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	f.cold = provision.ColdConfig{
		Launcher: f.launcher, Kernel: data.Vmlinux(), Initrd: data.Vmlinux(),
		Timeout: 20 * time.Second, Parallel: 4, Log: slog.New(slog.DiscardHandler), Faults: f.faults,
	}
	f.cfg = Config{
		Packs: packs, Limits: sandbox.DefaultPolicy(), Faults: f.faults,
		Capacity: Capacity{Sandboxes: 100, MemoryMiB: 1 << 20, VCPUs: 100}, OnceKeys: 100,
		Log: slog.New(slog.DiscardHandler),
	}
	for _, o := range options {
		o(&f.cfg, &f.cold)
	}
	f.begin()
	return f
}

// close ends the engine, of which nothing is left.
func (f *fixture) close() {
	f.t.Helper()
	if err := f.Close(context.Background()); err != nil {
		f.t.Error(err)
	}
	f.checkEmpty()
	if err := f.records.Close(); err != nil {
		f.t.Error(err)
	}
}

// begin makes the engine of a daemon that begins.
func (f *fixture) begin() {
	f.t.Helper()
	var err error
	if f.records, err = store.Open(f.run); err != nil {
		f.t.Fatal(err)
	}
	f.records.Faults = f.faults
	f.cold.Records = f.records
	f.cfg.Store, f.cfg.Provisioner = f.records, provision.NewCold(f.cold)
	f.cfg.Adopter = provision.Adopter{
		Host: provision.Host{Records: f.records, Log: f.cfg.Log, Faults: f.faults}, VMMs: f.launcher, Networks: f.cold.Networks,
		Before: f.launcher.Left(),
	}
	if f.Engine, err = New(f.cfg); err != nil {
		f.t.Fatal(err)
	}
}

// shortDir is a directory whose sockets fit the 107 bytes of a socket address,
// which a test's own directory may not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") //nolint:usetesting // its sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// checkEmpty fails the test if anything of a sandbox is left.
func (f *fixture) checkEmpty() {
	f.t.Helper()
	// A launcher collects its children, also those that another one has ended.
	f.await("no VMM runs", 5*time.Second, func() bool { return len(f.launcher.Running()) == 0 })
	for _, dir := range []string{f.launcher.Dir, f.run.Sandboxes(), f.run.VMs()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "data" {
				f.t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	if list := f.List(); len(list) > 0 {
		f.t.Errorf("still listed: %v", list)
	}
}

// awaitEmpty waits until nothing of any sandbox is left.
func (f *fixture) awaitEmpty() {
	f.t.Helper()
	f.await("it is cleared", 10*time.Second, func() bool { return len(f.entriesNow()) == 0 })
	f.checkEmpty()
}

func (f *fixture) create() sandbox.ID {
	f.t.Helper()
	sb, err := f.Create(f.t.Context(), sandbox.Spec{Pack: "shell"})
	if err != nil {
		f.t.Fatal(err)
	}
	return sb.ID
}

func TestLifeOfASandbox(t *testing.T) {
	f := newFixture(t)
	sb, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"})
	if err != nil {
		t.Fatal(err)
	}
	if sb.State != sandbox.Running || sb.Pack != "shell" || sb.BootPath != sandbox.ColdBoot || sb.Limits.Size != sandbox.DefaultSize {
		t.Errorf("created %+v", sb)
	}
	if got, err := f.Get(sb.ID); err != nil || got != sb {
		t.Errorf("Get = %+v, %v, want %+v", got, err, sb)
	}
	if got := f.List(); !slices.Equal(got, []sandbox.Sandbox{sb}) {
		t.Errorf("List = %+v", got)
	}
	recorded := sb
	recorded.IdleExpiresAt = time.Time{}
	records, err := f.cfg.Store.Load()
	if err != nil || !slices.Equal(records, []sandbox.Sandbox{recorded}) {
		t.Errorf("on disk: %+v, %v", records, err)
	}
	res, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "cat; echo err >&2; exit 3", Stdin: []byte("in")})
	if err != nil || string(res.Stdout) != "in" || string(res.Stderr) != "err\n" || res.ExitCode != 3 || res.Err != "" {
		t.Errorf("exec: %+v, %v", res, err)
	}
	if err := f.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"get":    func() error { _, err := f.Get(sb.ID); return err }(),
		"exec":   func() error { _, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{}); return err }(),
		"delete": f.Delete(t.Context(), sb.ID),
	} {
		if !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("%s after delete: %v, want not found", name, err)
		}
	}
	f.awaitEmpty()
}

func TestExecResults(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	for _, tt := range []struct {
		name, code string
		timeout    time.Duration
		want       sandbox.ExecResult
	}{
		{name: "success", code: "echo 42", want: sandbox.ExecResult{Stdout: []byte("42\n")}},
		{name: "signal", code: "kill -KILL $$", want: sandbox.ExecResult{ExitCode: 137}},
		{name: "limit", code: "sleep 60", timeout: 100 * time.Millisecond, want: sandbox.ExecResult{ExitCode: -1, Err: sandbox.ErrTextTimedOut}},
		{name: "too much output", code: "yes | head -c 20000000", want: sandbox.ExecResult{
			Stdout: []byte(strings.Repeat("y\n", sandbox.DefaultPolicy().Default.OutputBytes/2)), StdoutTruncated: true,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := f.Exec(t.Context(), id, sandbox.ExecRequest{Code: tt.code, Timeout: tt.timeout})
			if err != nil {
				t.Fatal(err)
			}
			if got.ExitCode != tt.want.ExitCode || got.Err != tt.want.Err || got.StdoutTruncated != tt.want.StdoutTruncated ||
				string(got.Stdout) != string(tt.want.Stdout) {
				t.Errorf("exit %d, %q, %d bytes, truncated %v", got.ExitCode, got.Err, len(got.Stdout), got.StdoutTruncated)
			}
		})
	}
}

func TestUnknownPackStartsNothing(t *testing.T) {
	f := newFixture(t)
	_, err := f.Create(t.Context(), sandbox.Spec{Pack: "ruby"})
	if !errors.Is(err, sandbox.ErrUnknownPack) {
		t.Errorf("got %v", err)
	}
	f.checkEmpty()
}

func TestBootPath(t *testing.T) {
	f := newFixture(t)
	if sb, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell", BootPath: sandbox.ColdBoot}); err != nil || sb.BootPath != sandbox.ColdBoot {
		t.Errorf("cold boot: %+v, %v", sb, err)
	}
	for _, path := range []sandbox.BootPath{sandbox.Restored, sandbox.Pooled} {
		_, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell", BootPath: path})
		if code, msg := sandbox.Public(err); code != sandbox.CodeCapacity || !strings.Contains(msg, string(path)) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if n := len(f.launcher.Running()); n != 1 {
		t.Errorf("%d VMMs run", n)
	}
}

func TestNoPackMeansPython(t *testing.T) {
	f := newFixture(t)
	if sb, err := f.Create(t.Context(), sandbox.Spec{}); err != nil || sb.Pack != "python" {
		t.Errorf("got %+v, %v", sb, err)
	}
}

func TestEachStepOfCreateIsUndone(t *testing.T) {
	for _, point := range slices.Concat(FaultPoints, provision.FaultPoints, firecracker.FaultPoints) {
		t.Run(point, func(t *testing.T) {
			f := newFixture(t)
			f.faults.Fail(point)
			_, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"})
			if injected, ok := errors.AsType[*fault.Error](err); !ok || injected.Point != point {
				t.Errorf("got %v, want the fault", err)
			}
			f.checkEmpty()
		})
	}
}

func TestVMMsThatDoNotWork(t *testing.T) {
	for _, mode := range []fctest.Mode{fctest.Silent, fctest.Mute, fctest.Stillborn, fctest.Deaf, fctest.Refusing} {
		t.Run(string(mode), func(t *testing.T) {
			f := newFixture(t, func(_ *Config, c *provision.ColdConfig) { c.Timeout = 2 * time.Second })
			f.launcher.Next(mode, mode)
			began := time.Now()
			_, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"})
			if !errors.Is(err, sandbox.ErrBoot) {
				t.Errorf("got %v, want a boot error", err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("gave up after %v, want 2s", took)
			}
			f.checkEmpty()
		})
	}
}

func TestStalledBootIsTriedOnceMore(t *testing.T) {
	f := newFixture(t, func(_ *Config, c *provision.ColdConfig) { c.Timeout = 4 * time.Second })
	f.launcher.Next(fctest.Silent)
	if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"}); err != nil {
		t.Error(err)
	}
}

func TestCreateGivenUp(t *testing.T) {
	f := newFixture(t)
	f.launcher.Next(fctest.Silent)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := f.Create(ctx, sandbox.Spec{Pack: "shell"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	f.checkEmpty()
}

func TestVMMDeathTakesTheSandboxOffTheList(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	failed := make(chan error)
	go func() {
		_, err := f.Exec(t.Context(), id, sandbox.ExecRequest{Code: "sleep 60"})
		failed <- err
	}()
	time.Sleep(200 * time.Millisecond)
	for _, pid := range f.launcher.Running() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-failed; !errors.Is(err, sandbox.ErrLost) {
		t.Errorf("exec: %v, want lost", err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for len(f.List()) > 0 || len(recordsOf(f)) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("still there")
		}
		runtime.Gosched()
	}
}

func recordsOf(f *fixture) []os.DirEntry {
	entries, _ := os.ReadDir(f.run.Sandboxes())
	return entries
}

func TestConcurrentLives(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			sb, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"})
			if err != nil {
				t.Error(err)
				return
			}
			var (
				deletes sync.WaitGroup
				done    atomic.Int32
			)
			for range 3 {
				deletes.Go(func() {
					switch err := f.Delete(t.Context(), sb.ID); {
					case err == nil:
						done.Add(1)
					case !errors.Is(err, sandbox.ErrNotFound):
						t.Error(err)
					}
				})
			}
			deletes.Wait()
			if n := done.Load(); n != 1 {
				t.Errorf("%d deletes of one sandbox succeeded", n)
			}
			if _, err := f.Get(sb.ID); !errors.Is(err, sandbox.ErrNotFound) {
				t.Errorf("a delete returned while %s is there: %v", sb.ID, err)
			}
		})
	}
	wg.Wait()
	f.awaitEmpty()
}

func TestCloseEndsEverything(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	f.launcher.Next(fctest.Silent)
	results := make(chan error, 2)
	go func() {
		_, err := f.Create(context.Background(), sandbox.Spec{Pack: "shell"})
		results <- err
	}()
	go func() {
		_, err := f.Exec(context.Background(), id, sandbox.ExecRequest{Code: "sleep 60"})
		results <- err
	}()
	time.Sleep(300 * time.Millisecond)
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.checkEmpty()
	for range 2 {
		if err := <-results; !errors.Is(err, sandbox.ErrClosing) && !errors.Is(err, sandbox.ErrLost) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := f.Create(t.Context(), sandbox.Spec{}); !errors.Is(err, sandbox.ErrClosing) {
		t.Errorf("create after close: %v", err)
	}
}
