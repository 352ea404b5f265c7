// Package engine owns the life of sandboxes: create, exec, delete, list.
//
// The one idea: one table of sandboxes, and one lock for each of them. What
// takes long happens under no lock but the sandbox's own. A sandbox's record is
// on disk before the first side effect and goes after the last, so the table is
// a cache of the disk.
//
// The invariant: a sandbox that is listed as running has a VM, and a VM that
// ended takes its sandbox off the list. Whoever creates, deletes, dies or shuts
// down at the same time, each sandbox is torn down exactly once. What sandboxes
// may come to use together never exceeds the capacity, and none of them outlives
// its deadlines.
//
// The engine asks a Provisioner for VMs and never sees a VMM; it knows no HTTP.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [Engine.Create], one for each step of its own.
const (
	FaultRecord  = "engine.record"
	FaultProvide = "engine.provide"
	FaultReady   = "engine.ready"
)

// FaultPoints are the steps of [Engine.Create] that a test can break.
var FaultPoints = []string{FaultRecord, FaultProvide, FaultReady}

// Config is what an engine works with.
type Config struct {
	Packs       *pack.Registry
	Provisioner provision.Provisioner
	Store       *store.Store
	Limits      sandbox.Policy
	Capacity    Capacity
	Log         *slog.Logger
	Faults      *fault.Set
	// Now is the clock; nil means [time.Now].
	Now func() time.Time
}

// Engine is the table of sandboxes. Its methods may be called by any number of
// goroutines.
type Engine struct {
	cfg Config
	// wg counts creates, the watchers of running VMs, and what watches the
	// deadlines, with the teardowns it begins.
	wg sync.WaitGroup
	// wake has whoever watches the deadlines look again; quit, which is closed,
	// ends it.
	wake chan struct{}
	quit chan struct{}

	mu       sync.Mutex
	entries  map[sandbox.ID]*entry
	promised Capacity
	closing  bool
}

// entry is one sandbox in the table.
type entry struct {
	// abort ends a create that is under way; gone is closed when nothing is
	// left of the sandbox.
	abort context.CancelCauseFunc
	gone  chan struct{}
	// teardown is held by the one who takes the sandbox down.
	teardown sync.Mutex

	// began is when the sandbox was asked for, on the monotonic clock.
	began time.Time

	// mu guards what follows. It is never held across I/O.
	mu sync.Mutex
	sb sandbox.Sandbox
	vm *provision.VM
	// execs is how many programs run, and idleSince when the last of them ended.
	execs     int
	idleSince time.Time
	// end is why the sandbox is taken down.
	end reason
}

func (en *entry) snapshot() (sandbox.Sandbox, *provision.VM) {
	en.mu.Lock()
	defer en.mu.Unlock()
	sb := en.sb
	if sb.State == sandbox.Running && en.execs == 0 {
		sb.IdleExpiresAt = en.idleSince.Add(sb.Limits.IdleTimeout).UTC()
	}
	return sb, en.vm
}

// reason is why a sandbox is taken down, as people are told.
type reason string

const (
	failed       reason = "it could not be created"
	deleted      reason = "it was deleted"
	expired      reason = "its lifetime was over"
	idle         reason = "it was idle for too long"
	ended        reason = "its microVM ended"
	unresponsive reason = "its agent did not answer"
	disconnected reason = "the connection to its agent broke"
	closing      reason = "emberd is shutting down"
)

// New returns an engine with no sandboxes. Records that an earlier daemon left
// are cleared: its VMs are gone by the time an engine is made. The caller closes
// the engine.
func New(cfg Config) (*Engine, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	old, err := cfg.Store.Load()
	if err != nil {
		cfg.Log.Error("unreadable sandbox records were set aside", "err", err)
	}
	for _, sb := range old {
		cfg.Log.Warn("sandbox was lost when emberd stopped", "sandbox_id", sb.ID, "pack", sb.Pack)
		if err := cfg.Store.Delete(sb.ID); err != nil {
			return nil, err
		}
	}
	e := &Engine{
		cfg: cfg, entries: make(map[sandbox.ID]*entry),
		wake: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	e.wg.Go(e.watchDeadlines)
	return e, nil
}

// Ready returns nil as long as sandboxes can be created.
func (e *Engine) Ready() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return sandbox.ErrClosing
	}
	return nil
}

// Get returns one sandbox that is running.
func (e *Engine) Get(id sandbox.ID) (sandbox.Sandbox, error) {
	en := e.find(id)
	if en == nil {
		return sandbox.Sandbox{}, sandbox.ErrNotFound
	}
	sb, _ := en.snapshot()
	if sb.State != sandbox.Running {
		return sandbox.Sandbox{}, sandbox.ErrNotFound
	}
	return sb, nil
}

// List returns the sandboxes that are running, oldest first.
func (e *Engine) List() []sandbox.Sandbox {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := []sandbox.Sandbox{}
	for _, en := range e.entries {
		if sb, _ := en.snapshot(); sb.State == sandbox.Running {
			list = append(list, sb)
		}
	}
	slices.SortFunc(list, func(a, b sandbox.Sandbox) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// find returns the entry of id, nil if there is none.
func (e *Engine) find(id sandbox.ID) *entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.entries[id]
}

// Create makes a sandbox and returns when it is ready for exec. When ctx ends
// first, nothing is left of it.
func (e *Engine) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	p, err := e.cfg.Packs.Get(cmp.Or(spec.Pack, sandbox.DefaultPack))
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	limits, err := e.cfg.Limits.Resolve(spec.Limits)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	en, err := e.reserve(p, limits, cancel)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	defer e.wg.Done()

	sb, _ := en.snapshot()
	began := e.cfg.Now()
	if err := e.bringUp(ctx, en, p, spec.BootPath); err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("create %s: %w", sb.ID, errors.Join(err, e.takeDown(ctx, en, failed)))
	}
	e.lookAgain()
	sb, _ = en.snapshot()
	e.cfg.Log.Info("sandbox created", "sandbox_id", sb.ID, "vm", sb.VM, "pack", sb.Pack,
		"boot_path", sb.BootPath, "duration_ms", e.cfg.Now().Sub(began).Milliseconds())
	return sb, nil
}

// reserve puts a new sandbox into the table, where Close and the next daemon
// can see it, if there is room for it. The caller owns one count of e.wg.
func (e *Engine) reserve(p pack.Pack, limits sandbox.Limits, abort context.CancelCauseFunc) (*entry, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return nil, sandbox.ErrClosing
	}
	if err := e.admit(limits.Size); err != nil {
		return nil, err
	}
	id := sandbox.NewID()
	for e.entries[id] != nil {
		id = sandbox.NewID()
	}
	now := e.cfg.Now()
	en := &entry{
		abort: abort,
		gone:  make(chan struct{}),
		began: now,
		sb: sandbox.Sandbox{
			ID: id, Pack: p.Name, Limits: limits, State: sandbox.Creating,
			CreatedAt: now.UTC(), ExpiresAt: now.Add(limits.Lifetime).UTC(),
		},
	}
	e.entries[id] = en
	e.promise(limits.Size)
	e.wg.Add(1)
	return en, nil
}

// bringUp does what makes a reserved sandbox run. On error the caller takes it
// down.
func (e *Engine) bringUp(ctx context.Context, en *entry, p pack.Pack, path sandbox.BootPath) error {
	sb, _ := en.snapshot()
	if err := e.cfg.Faults.Hit(FaultProvide); err != nil {
		return err
	}
	vm, err := e.cfg.Provisioner.Provision(ctx, provision.Request{
		Pack: p, Limits: sb.Limits, BootPath: path,
		Begin: func(id sandbox.VMID) error {
			planned := sb
			planned.VM = id
			return errors.Join(e.cfg.Faults.Hit(FaultRecord), e.cfg.Store.Put(planned))
		},
	})
	if err != nil {
		return err
	}
	en.mu.Lock()
	en.vm = vm
	en.mu.Unlock()
	sb.VM, sb.BootPath = vm.ID, vm.BootPath
	if err := e.cfg.Faults.Hit(FaultReady); err != nil {
		return err
	}
	running := sb
	running.State = sb.State.To(sandbox.Running)
	if err := e.cfg.Store.Put(running); err != nil {
		return err
	}

	en.mu.Lock()
	defer en.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	en.sb = running
	en.idleSince = e.cfg.Now()
	e.wg.Go(func() { e.watch(context.WithoutCancel(ctx), en, vm) })
	return nil
}

// Delete ends a sandbox and returns when nothing is left of it. It is also true
// for a sandbox that somebody else is deleting at the same time.
func (e *Engine) Delete(ctx context.Context, id sandbox.ID) error {
	en := e.find(id)
	if en == nil {
		return sandbox.ErrNotFound
	}
	sb, _ := en.snapshot()
	if sb.State == sandbox.Creating {
		// Nobody was told this id yet.
		return sandbox.ErrNotFound
	}
	return e.takeDown(ctx, en, deleted)
}

// takeDown removes everything a sandbox has, then its record, then its place in
// the table. A caller that comes second waits for the first, and tries again
// what that could not do; the first one's reason stands.
func (e *Engine) takeDown(ctx context.Context, en *entry, why reason) error {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	en.teardown.Lock()
	defer en.teardown.Unlock()

	en.condemn(why)
	sb, vm := en.snapshot()
	if sb.State == sandbox.Gone {
		return nil
	}

	if vm != nil {
		if err := vm.Kill(ctx); err != nil {
			return fmt.Errorf("delete %s: %w", sb.ID, err)
		}
	}
	if err := e.cfg.Store.Delete(sb.ID); err != nil {
		return fmt.Errorf("delete %s: %w", sb.ID, err)
	}
	e.mu.Lock()
	delete(e.entries, sb.ID)
	e.release(sb.Limits.Size)
	e.mu.Unlock()
	en.mu.Lock()
	en.sb.State = en.sb.State.To(sandbox.Gone)
	why = en.end
	en.mu.Unlock()
	close(en.gone)
	e.cfg.Log.Info("sandbox gone", "sandbox_id", sb.ID, "pack", sb.Pack, "reason", string(why))
	return nil
}

// condemn marks a sandbox as being taken down, so that nothing new begins in
// it, and tells whether nobody had before.
func (en *entry) condemn(why reason) bool {
	en.mu.Lock()
	defer en.mu.Unlock()
	if en.sb.State == sandbox.Deleting || en.sb.State == sandbox.Gone {
		return false
	}
	en.sentence(why)
	return true
}

// sentence is condemn for a caller that holds en.mu and knows that nobody had.
func (en *entry) sentence(why reason) {
	en.sb.State = en.sb.State.To(sandbox.Deleting)
	en.end = why
}

// Close refuses new sandboxes, aborts the creates that are under way, deletes
// every sandbox and returns when all of it is done. It may be called again.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	if !e.closing {
		close(e.quit)
	}
	e.closing = true
	all := slices.Collect(maps.Values(e.entries))
	e.mu.Unlock()

	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, en := range all {
		en.abort(sandbox.ErrClosing)
		wg.Go(func() {
			if sb, _ := en.snapshot(); sb.State == sandbox.Creating {
				return // its create takes it down
			}
			err := e.takeDown(ctx, en, closing)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	e.wg.Wait()
	return errors.Join(errs...)
}
