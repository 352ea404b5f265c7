package template

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
	"github.com/emberd/emberd/internal/x/fault"
)

func TestMain(m *testing.M) {
	fctest.Main()
	goleak.VerifyTestMain(m)
}

// fixture is templates of fake VMMs.
type fixture struct {
	*Templates
	t        *testing.T
	cfg      Config
	launcher *fctest.Launcher
	faults   *fault.Set
	log      *testenv.Log
}

func newFixture(t *testing.T, options ...func(*Config)) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") //nolint:usetesting // its sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data := fctest.Data(t, filepath.Join(dir, "data"))
	packs, err := pack.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, launcher: &fctest.Launcher{Dir: dir}, faults: &fault.Set{}, log: &testenv.Log{}}
	log := slog.New(slog.NewTextHandler(f.log, nil))
	f.cfg = Config{
		Cold: provision.NewCold(provision.ColdConfig{
			Launcher: f.launcher, Kernel: data.Vmlinux(), Initrd: data.Vmlinux(),
			Timeout: 20 * time.Second, Parallel: 4, Log: log, Faults: f.faults,
		}),
		Launcher: f.launcher, Packs: packs, Dir: filepath.Join(dir, "templates"),
		Kernel: data.Vmlinux(), Initrd: data.Vmlinux(), Host: Host{Firecracker: "1.12.1"},
		Size: sandbox.DefaultSize, BuildTimeout: 20 * time.Second, RestoreTimeout: 20 * time.Second, Parallel: 4,
		Log: log, Faults: f.faults,
	}
	for _, o := range options {
		o(&f.cfg)
	}
	f.open()
	t.Cleanup(func() {
		f.close()
		if pids := f.launcher.Running(); len(pids) > 0 {
			t.Errorf("VMMs left running: %v", pids)
		}
		if t.Failed() {
			t.Logf("log:\n%s", f.log)
		}
	})
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	var err error
	if f.Templates, err = Open(f.t.Context(), f.cfg); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) close() {
	f.t.Helper()
	if f.Templates == nil {
		return
	}
	if err := f.Close(); err != nil {
		f.t.Error(err)
	}
	f.Templates = nil
}

func (f *fixture) shell() pack.Pack {
	f.t.Helper()
	p, err := f.cfg.Packs.Get("shell")
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fixture) request() provision.Request {
	limits, err := sandbox.DefaultPolicy().Resolve(sandbox.Limits{})
	if err != nil {
		f.t.Fatal(err)
	}
	return provision.Request{Pack: f.shell(), Limits: limits, Begin: func(sandbox.VMID) error { return nil }}
}

// provide makes a VM, runs a program in it, ends it and returns how it came to
// be.
func (f *fixture) provide() sandbox.BootPath {
	f.t.Helper()
	vm, err := f.Provision(f.t.Context(), f.request())
	if err != nil {
		f.t.Fatal(err)
	}
	var out strings.Builder
	exit, err := vm.Agent.Exec(f.t.Context(), agent.Command{Code: "echo $((6*7))"}, agent.Stdio{Stdout: &out})
	if err != nil || exit.Code != 0 || out.String() != "42\n" {
		f.t.Errorf("%q, %+v, %v", &out, exit, err)
	}
	if err := vm.Kill(f.t.Context()); err != nil {
		f.t.Error(err)
	}
	return vm.BootPath
}

func (f *fixture) build() Info {
	f.t.Helper()
	info, err := f.Build(f.t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize})
	if err != nil {
		f.t.Fatal(err)
	}
	return info
}

// entries are what is in the directory of templates.
func (f *fixture) entries() []string {
	f.t.Helper()
	all, err := os.ReadDir(f.cfg.Dir)
	if err != nil {
		f.t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		if e.Name() != lockName {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestTemplateIsMadeBehindTheFirstRequest(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Shells = 2 })
	if path := f.provide(); path != sandbox.ColdBoot {
		t.Errorf("the first VM came by %s", path)
	}
	info := f.build() // waits for what goes on
	if path := f.provide(); path != sandbox.Restored {
		t.Errorf("the second VM came by %s", path)
	}
	if list := f.List(); len(list) != 1 || list[0] != info || info.State != Ready || info.Bytes > 1<<20 || info.Apparent < 256<<20 {
		t.Errorf("listed: %+v, built %+v", list, info)
	}

	// The next daemon takes what is there.
	f.close()
	f.open()
	if list := f.List(); len(list) != 1 || list[0].State != Unverified || list[0].ID != info.ID {
		t.Errorf("listed after a restart: %+v", list)
	}
	f.faults.Fail(firecracker.FaultStart) // nothing can be booted
	if again := f.build(); again.CreatedAt != info.CreatedAt {
		t.Errorf("it was made again: %+v", again)
	}
	if path := f.provide(); path != sandbox.Restored {
		t.Errorf("a VM came by %s", path)
	}

	if err := f.Remove(info.ID); err != nil {
		t.Error(err)
	}
	if err := f.Remove(info.ID); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if left := f.entries(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A client waits for the boot, and nobody for the template.
func TestMakingWaitsForTheBoot(t *testing.T) {
	f := newFixture(t)
	req := f.request()
	req.Begin = func(sandbox.VMID) error {
		time.Sleep(50 * time.Millisecond) // in which it would have begun
		if list := f.List(); len(list) != 1 || list[0].Phase != "waiting" || len(f.entries()) > 0 {
			t.Errorf("during the boot: %+v, %q", list, f.entries())
		}
		return nil
	}
	vm, err := f.Provision(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	f.build()
}

func TestBootPathThatIsInsistedOn(t *testing.T) {
	f := newFixture(t)
	ask := func(path sandbox.BootPath) error {
		t.Helper()
		req := f.request()
		req.BootPath = path
		vm, err := f.Provision(t.Context(), req)
		if err != nil {
			return err
		}
		if vm.BootPath != path {
			t.Errorf("asked for %s, got %s", path, vm.BootPath)
		}
		return vm.Kill(t.Context())
	}
	if err := ask(sandbox.Restored); !errors.Is(err, sandbox.ErrCapacity) {
		t.Errorf("restored from nothing: %v", err)
	}
	f.build()
	if err := ask(sandbox.Restored); err != nil {
		t.Error(err)
	}
	if err := ask(sandbox.ColdBoot); err != nil {
		t.Error(err)
	}
	if err := ask(sandbox.Pooled); !errors.Is(err, sandbox.ErrCapacity) {
		t.Errorf("pooled without a pool: %v", err)
	}
	f.faults.Fail(firecracker.FaultLoad)
	if err := ask(sandbox.Restored); !errors.Is(err, sandbox.ErrBoot) {
		t.Errorf("restored by a boot: %v", err)
	}
}

func TestManyCreatesMakeOneTemplate(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := f.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { f.provide() })
	}
	wg.Wait()
	if n := strings.Count(f.log.String(), "template is ready"); n != 1 || len(f.entries()) != 1 {
		t.Errorf("made %d times; there are %q", n, f.entries())
	}
}

// Whatever step of making a template fails, nothing is left of it, and requests
// are answered all the same.
func TestEachStepOfMakingIsUndone(t *testing.T) {
	f := newFixture(t)
	points := slices.Concat(FaultPoints, provision.FaultPoints, firecracker.FaultPoints,
		firecracker.SnapshotFaultPoints, firecracker.RestoreFaultPoints)
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			hit := false
			f.faults.Do(point, func() error { hit = true; return &fault.Error{Point: point} })
			defer f.faults.Do(point, func() error { return nil })
			if _, err := f.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize}); err == nil || !hit {
				t.Errorf("built: %v, step reached: %v", err, hit)
			}
			if left := f.entries(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			if pids := f.launcher.Running(); len(pids) > 0 {
				t.Errorf("VMMs left running: %v", pids)
			}
			if list := f.List(); len(list) != 1 || list[0].State != Failed {
				t.Errorf("listed: %+v", list)
			}
		})
	}
	if path := f.provide(); path != sandbox.ColdBoot {
		t.Errorf("a VM came by %s", path)
	}
	f.build()
}

// A restore that fails is followed by a boot; a template that fails again and
// again is made anew.
func TestEachStepOfRestoringIsUndone(t *testing.T) {
	for _, shells := range []int{0, 1} {
		f := newFixture(t, func(c *Config) { c.Shells = shells })
		f.build()
		for _, point := range firecracker.RestoreFaultPoints {
			failed := false
			f.faults.Do(point, func() error {
				if failed {
					return nil
				}
				failed = true
				return &fault.Error{Point: point}
			})
			if path := f.provide(); path != sandbox.ColdBoot || !failed {
				t.Errorf("%s: a VM came by %s", point, path)
			}
			if path := f.provide(); path != sandbox.Restored {
				t.Errorf("after %s: a VM came by %s", point, path)
			}
			f.faults.Do(point, func() error { return nil })
		}
		f.faults.Fail(firecracker.FaultLoad)
		for range maxSuspect {
			f.provide()
		}
		if left := f.entries(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		f.faults.Do(firecracker.FaultLoad, func() error { return nil })
		f.build()
		if path := f.provide(); path != sandbox.Restored {
			t.Errorf("a VM came by %s", path)
		}
	}
}

// A request that goes away while a VM is restored leaves nothing, and says
// nothing about the template.
func TestRestoreThatIsGivenUp(t *testing.T) {
	f := newFixture(t)
	f.build()
	ctx, cancel := context.WithCancel(t.Context())
	f.faults.Do(firecracker.FaultLoad, func() error { cancel(); return nil })
	if _, err := f.Provision(ctx, f.request()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if pids := f.launcher.Running(); len(pids) > 0 {
		t.Errorf("VMMs left running: %v", pids)
	}
	if strings.Contains(f.log.String(), "restore failed") {
		t.Error("it counts as a failure")
	}
}

// What the VM that proves a template has written to, others are given ahead.
func TestWrittenPagesAreKept(t *testing.T) {
	f := newFixture(t)
	f.build()
	list := f.List()
	if len(list) != 1 {
		t.Fatalf("listed: %+v", list)
	}
	m, err := readManifest(filepath.Join(f.cfg.Dir, list[0].ID))
	if err != nil {
		t.Fatal(err)
	}
	if want := (firecracker.Pages{{0, 1}, {2, 1}}); !slices.Equal(m.Armed, want) || !slices.Equal(m.Rehearsed, want) {
		t.Errorf("armed: %v, rehearsed: %v; a fake writes to %v", m.Armed, m.Rehearsed, fctest.WrittenPages)
	}
	if path := f.provide(); path != sandbox.Restored {
		t.Errorf("a VM came by %s", path)
	}
}
