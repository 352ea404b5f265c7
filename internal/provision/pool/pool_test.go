package pool

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

func TestMain(m *testing.M) {
	fctest.Main()
	goleak.VerifyTestMain(m)
}

// fast is a pool in a hurry, so that tests are not long.
var fast = tempo{
	check: 100 * time.Millisecond, silence: 500 * time.Millisecond,
	decay: 200 * time.Millisecond, lull: time.Millisecond, patience: 100 * time.Millisecond,
	firstPause: 20 * time.Millisecond, longPause: 100 * time.Millisecond,
	prepare: 5 * time.Second,
}

// fixture is a pool of the pack shell over fake VMMs.
type fixture struct {
	*Pool
	t        *testing.T
	launcher *fctest.Launcher
	faults   *fault.Set
	packs    *pack.Registry
	limits   sandbox.Limits
	cold     provision.ColdConfig
	// given are the VMs that the test took.
	given []*provision.VM
}

func newFixture(t *testing.T, bounds Bounds, options ...func(*Config, *tempo)) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") //nolint:usetesting // its sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, launcher: &fctest.Launcher{Dir: dir}, faults: &fault.Set{}}
	data := fctest.Data(t, filepath.Join(dir, "data"))
	if f.packs, err = pack.Load(data); err != nil {
		t.Fatal(err)
	}
	if f.limits, err = sandbox.DefaultPolicy().Resolve(sandbox.Limits{}); err != nil {
		t.Fatal(err)
	}
	f.cold = provision.ColdConfig{
		Launcher: f.launcher, Kernel: data.Vmlinux(), Initrd: data.Vmlinux(),
		Timeout: 20 * time.Second, Parallel: 4, Log: slog.New(slog.DiscardHandler), Faults: f.faults,
	}
	cfg := Config{
		Source:     provision.NewCold(f.cold),
		Stocks:     []Stock{{Pack: f.pack("shell"), Limits: f.limits, Bounds: bounds}},
		Foreground: provision.NewForeground(1),
		Log:        slog.New(slog.DiscardHandler), Faults: f.faults,
	}
	at := fast
	for _, o := range options {
		o(&cfg, &at)
	}
	f.Pool = newPool(cfg, at)
	f.Start()
	t.Cleanup(func() {
		for _, vm := range f.given {
			if err := vm.Kill(context.Background()); err != nil {
				t.Error(err)
			}
		}
		f.end()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return f
}

// end closes the pool; nothing may be left of what nobody took.
func (f *fixture) end() {
	f.t.Helper()
	if err := f.Close(context.Background()); err != nil {
		f.t.Error(err)
	}
	if pids := f.launcher.Running(); len(pids) > 0 {
		f.t.Errorf("VMMs left running: %v", pids)
	}
	entries, err := os.ReadDir(f.launcher.Dir)
	if err != nil || len(entries) != 1 {
		f.t.Errorf("left behind: %v, %v", entries, err)
	}
}

func (f *fixture) pack(name string) pack.Pack {
	f.t.Helper()
	p, err := f.packs.Get(name)
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fixture) request() provision.Request {
	return provision.Request{Pack: f.pack("shell"), Limits: f.limits, Begin: func(sandbox.VMID) error { return nil }}
}

// get has the pool provide a VM.
func (f *fixture) get(req provision.Request) *provision.VM {
	f.t.Helper()
	vm, err := f.Provision(f.t.Context(), req)
	if err != nil {
		f.t.Fatal(err)
	}
	f.given = append(f.given, vm)
	return vm
}

// await waits until the pool's one stock stands as it should.
func (f *fixture) await(what string, is func(Status) bool) Status {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s := f.Status()[0]
		if is(s) {
			return s
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("waited in vain: %s; it is %+v", what, s)
		}
	}
}

func ready(n int) func(Status) bool { return func(s Status) bool { return s.Ready == n } }

func TestHandOver(t *testing.T) {
	f := newFixture(t, Bounds{2, 2})
	f.await("it is full", ready(2))
	req := f.request()
	req.Begin = func(sandbox.VMID) error { t.Error("a VM that exists was announced"); return nil }
	first, second := f.get(req), f.get(req)
	if first.ID == second.ID || first.BootPath != sandbox.Pooled || second.BootPath != sandbox.Pooled {
		t.Errorf("got %s by %s and %s by %s", first.ID, first.BootPath, second.ID, second.BootPath)
	}
	for _, vm := range f.given {
		var out bytes.Buffer
		if _, err := vm.Agent.Exec(t.Context(), agent.Command{Code: "echo 42"}, agent.Stdio{Stdout: &out, Stderr: &out}); err != nil || out.String() != "42\n" {
			t.Errorf("exec: %q, %v", out.String(), err)
		}
	}
	s := f.await("it is full again", ready(2))
	if s.Hits != 2 || s.Misses != 0 || s.Refills != 4 || s.Failures != 0 {
		t.Errorf("counted %+v", s)
	}
	if n := len(f.launcher.Running()); n != 4 {
		t.Errorf("%d VMMs run", n)
	}
}

// What the pool does not keep comes from the source, and counts for nothing.
func TestOthersFallThrough(t *testing.T) {
	f := newFixture(t, Bounds{1, 1})
	f.await("it is full", ready(1))
	for name, change := range map[string]func(*provision.Request){
		"pack":      func(r *provision.Request) { r.Pack = f.pack("python") },
		"memory":    func(r *provision.Request) { r.Limits.MemoryMiB *= 2 },
		"vcpus":     func(r *provision.Request) { r.Limits.VCPUs++ },
		"disk":      func(r *provision.Request) { r.Limits.DiskMiB-- },
		"pids":      func(r *provision.Request) { r.Limits.PIDs++ },
		"boot path": func(r *provision.Request) { r.BootPath = sandbox.ColdBoot },
	} {
		req := f.request()
		change(&req)
		if vm := f.get(req); vm.BootPath != sandbox.ColdBoot {
			t.Errorf("another %s: by %s", name, vm.BootPath)
		}
	}
	for name, change := range map[string]func(*provision.Request){
		"pids":    func(r *provision.Request) { r.Limits.PIDs++; r.BootPath = sandbox.Pooled },
		"restore": func(r *provision.Request) { r.BootPath = sandbox.Restored },
	} {
		req := f.request()
		change(&req)
		if _, err := f.Provision(t.Context(), req); !errors.Is(err, sandbox.ErrCapacity) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := f.Status()[0]; s.Ready != 1 || s.Hits != 0 || s.Misses != 0 {
		t.Errorf("it is %+v", s)
	}
	lifetime := f.request()
	lifetime.Limits.Lifetime *= 2 // which the VM knows nothing of
	if vm := f.get(lifetime); vm.BootPath != sandbox.Pooled {
		t.Errorf("another lifetime: by %s", vm.BootPath)
	}
}

// An empty pool has the source make the VM, and keeps more from then on, within
// its bounds, until it is quiet again.
func TestTargetFollowsDemand(t *testing.T) {
	f := newFixture(t, Bounds{0, 2}, func(_ *Config, at *tempo) { at.decay = 2 * time.Second })
	if _, err := f.Provision(t.Context(), provision.Request{Pack: f.pack("shell"), Limits: f.limits, BootPath: sandbox.Pooled}); !errors.Is(err, sandbox.ErrCapacity) {
		t.Errorf("an empty pool: %v", err)
	}
	for range 3 {
		if vm := f.get(provision.Request{Pack: f.pack("shell"), Limits: f.limits, BootPath: sandbox.ColdBoot, Begin: f.request().Begin}); vm.BootPath != sandbox.ColdBoot {
			t.Errorf("by %s", vm.BootPath)
		}
	}
	f.await("one is wanted and there", func(s Status) bool { return s.Target == 1 && s.Ready == 1 && s.Misses == 1 })
	f.get(f.request())
	for f.Status()[0].Misses < 3 {
		f.get(f.request())
	}
	s := f.await("two are wanted and there", func(s Status) bool { return s.Target == 2 && s.Ready == 2 })
	if s.Stock.Bounds.Max != 2 {
		t.Errorf("bounds %+v", s.Stock.Bounds)
	}
	f.await("none is wanted any more", func(s Status) bool { return s.Target == 0 && s.Ready == 0 })
}

func TestDeathWhileWaiting(t *testing.T) {
	f := newFixture(t, Bounds{1, 1})
	f.await("it is full", ready(1))
	for _, pid := range f.launcher.Running() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s := f.await("it is replaced", func(s Status) bool { return s.Refills == 2 && s.Ready == 1 })
	if s.Failures != 1 {
		t.Errorf("counted %+v", s)
	}
	if vm := f.get(f.request()); vm.BootPath != sandbox.Pooled {
		t.Errorf("by %s", vm.BootPath)
	}
}

func TestSilenceWhileWaiting(t *testing.T) {
	f := newFixture(t, Bounds{1, 1})
	f.await("it is full", ready(1))
	stopped := f.launcher.Running()
	if err := syscall.Kill(stopped[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.await("it is replaced", func(s Status) bool { return s.Refills == 2 && s.Ready == 1 && s.Failures == 1 })
	for deadline := time.Now().Add(5 * time.Second); len(f.launcher.Running()) > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the silent one was not cleared")
		}
	}
}

// Refills that fail are tried again, but not without pause, and requests go on.
func TestRefillsThatFail(t *testing.T) {
	for _, point := range []string{FaultRefill, FaultPrepare} {
		t.Run(point, func(t *testing.T) {
			f := newFixture(t, Bounds{1, 1})
			f.await("it is full", ready(1))
			var tries atomic.Int32
			f.faults.Do(point, func() error { tries.Add(1); return &fault.Error{Point: point} })
			began := time.Now()
			f.get(f.request())
			f.await("it has failed a few times", func(s Status) bool { return s.Failures >= 5 })
			// 20, 40, 80 and 100 ms lie between the first five.
			if took := time.Since(began); took < 240*time.Millisecond {
				t.Errorf("tried %d times within %v", tries.Load(), took)
			}
			if vm := f.get(f.request()); vm.BootPath != sandbox.ColdBoot {
				t.Errorf("by %s", vm.BootPath)
			}
			f.faults.Do(point, func() error { return nil })
			f.await("it is full again", ready(1))
		})
	}
}

// A hand-over that fails leaves the pool as it is.
func TestHandOverThatFails(t *testing.T) {
	f := newFixture(t, Bounds{1, 1})
	f.await("it is full", ready(1))
	f.faults.Fail(FaultHandover)
	if _, ok := errors.AsType[*fault.Error](errorOf(f.Provision(t.Context(), f.request()))); !ok {
		t.Error("the step was not reached")
	}
	if s := f.Status()[0]; s.Ready != 1 || s.Hits != 0 {
		t.Errorf("it is %+v", s)
	}
}

func errorOf(_ *provision.VM, err error) error { return err }

// Each VM is given away once, however many ask for it.
func TestManyForOne(t *testing.T) {
	f := newFixture(t, Bounds{2, 2})
	f.await("it is full", ready(2))
	f.faults.Fail(FaultRefill)
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		ids = map[sandbox.VMID]bool{}
	)
	req := f.request()
	req.BootPath = sandbox.Pooled
	for range 20 {
		wg.Go(func() {
			vm, err := f.Provision(t.Context(), req)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				ids[vm.ID] = true
				f.given = append(f.given, vm)
			case !errors.Is(err, sandbox.ErrCapacity):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(f.given) != 2 || len(ids) != 2 {
		t.Errorf("%d given away, %d different", len(f.given), len(ids))
	}
}

func TestPreparation(t *testing.T) {
	var before, prepared atomic.Int32
	f := newFixture(t, Bounds{2, 2}, func(c *Config, _ *tempo) {
		c.Before = func(_ context.Context, s Stock) error {
			before.Add(1)
			if prepared.Load() > 0 || s.Pack.Name != "shell" {
				t.Errorf("too late, or for the pack %s", s.Pack.Name)
			}
			return errors.New("it cannot be built")
		}
		c.Prepare = func(ctx context.Context, vm *provision.VM) error {
			prepared.Add(1)
			return vm.Agent.Ping(ctx)
		}
	})
	f.await("it is full", ready(2))
	if before.Load() != 1 || prepared.Load() != 2 {
		t.Errorf("begun %d times, prepared %d", before.Load(), prepared.Load())
	}
}

// A pool that is closed while it makes a VM, or while one waits, leaves nothing.
func TestCloseInTheMiddle(t *testing.T) {
	for name, mode := range map[string]fctest.Mode{"refill": fctest.Silent, "waiting": fctest.Sound} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Bounds{0, 2})
			f.launcher.Next(fctest.Sound, fctest.Sound, mode, mode)
			for range 2 {
				f.get(f.request())
			}
			deadline := time.Now().Add(5 * time.Second)
			for len(f.launcher.Running()) < 3 && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			for _, vm := range f.given {
				if err := vm.Kill(t.Context()); err != nil {
					t.Error(err)
				}
			}
			began := time.Now()
			f.end()
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// However it is used, there are never more VMs in the pool than it may keep.
func TestBoundsHold(t *testing.T) {
	const most = 3
	f := newFixture(t, Bounds{1, most}, func(_ *Config, at *tempo) { at.decay = 20 * time.Millisecond })
	for range 100 {
		vm, _ := f.take(f.request())
		f.mu.Lock()
		if s := f.shelves[0]; len(s.waiting)+s.apart > most {
			t.Errorf("%d waiting, %d being made or cleared", len(s.waiting), s.apart)
		}
		f.mu.Unlock()
		if vm != nil {
			if err := vm.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}
