// Package engine owns the life of sandboxes: create, exec, delete, list.
//
// The one idea: one table of sandboxes, and one goroutine that owns each of
// them: the one that creates it, and then its watcher. Whoever wants its end
// condemns it, from when on nothing begins in it, and the owner takes it down.
// A sandbox's record is on disk before the first side effect and goes after the
// last, so the table is a cache of the disk, and the next daemon goes on with
// what this one leaves, whether it was asked to or killed.
//
// The invariant: a sandbox that is listed as running has a VM, and a VM that
// ended takes its sandbox off the list. Whoever creates, deletes, dies or shuts
// down at the same time, each sandbox is torn down exactly once, and as long as
// anything is left of it, it counts. What sandboxes may come to use together
// never exceeds the capacity, and none of them outlives its deadlines.
//
// The engine asks a Provisioner for VMs and never sees a VMM; it knows no HTTP.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/telemetry/trace"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points, one for each step of the engine's own: those of [Engine.Create],
// then that of [Engine.Delete], and that of the clearing up behind it.
const (
	FaultRecord  = "engine.record"
	FaultProvide = "engine.provide"
	FaultReady   = "engine.ready"
	FaultDelete  = "engine.delete"
	FaultClear   = "engine.clear"
)

// FaultExec is the fault point of each program that is begun.
const FaultExec = "engine.exec"

// FaultEgress is the fault point between the record of a policy and its being in
// force.
const FaultEgress = "engine.egress"

// FaultRecover is the fault point of each VM that [Engine.Recover] sees to.
const FaultRecover = "engine.recover"

// FaultPoints are the steps of [Engine.Create] that a test can break.
var FaultPoints = []string{FaultRecord, FaultProvide, FaultReady}

// Config is what an engine works with.
type Config struct {
	Packs       *pack.Registry
	Provisioner provision.Provisioner
	Store       *store.Store
	Limits      sandbox.Policy
	Capacity    Capacity
	// OnceKeys is how many creates that are to be carried out once are remembered.
	OnceKeys int
	// Foreground is told of each request, and what is cleared behind one stands
	// back for the next; nil is one of the engine's own.
	Foreground *provision.Foreground
	// Adopter takes over what an earlier daemon left, and Spares takes the VMs
	// among it that no sandbox has; nil has no use for any.
	Adopter Adopter
	Spares  Spares
	// Egress decides what sandboxes may reach; nil gives none a network interface.
	Egress Policies
	// Audit is told what that was, and what was refused; nil is nobody.
	Audit Audit
	// Events hears of what happens; nil is nobody.
	Events Events
	Log    *slog.Logger
	Faults *fault.Set
	// Now is the clock; nil means [time.Now].
	Now func() time.Time
	// Uptime is a clock that goes on when the daemon ends, and that nobody sets;
	// nil means the host's.
	Uptime func() time.Duration
}

// Engine is the table of sandboxes. Its methods may be called by any number of
// goroutines.
type Engine struct {
	cfg Config
	// auditFails says that the last line of the audit was lost.
	auditFails atomic.Bool
	// wg counts the owners of sandboxes, and what watches the deadlines.
	wg sync.WaitGroup
	// alarm has whoever watches the deadlines look at them; quit, which is closed,
	// ends it, and has the owners give up what they cannot take down. leave is
	// closed to have them let go of what runs.
	alarm *alarm
	quit  chan struct{}
	leave chan struct{}
	// staying ends, by depart, when they are to let go.
	staying context.Context
	depart  context.CancelCauseFunc
	// last is held by Close for what the owners gave up.
	last sync.Mutex

	mu       sync.Mutex
	entries  map[sandbox.ID]*entry
	promised Capacity
	answers  answers
	// found is what an earlier daemon left, nil once it was seen to.
	found   *found
	closing bool
	leaving bool
}

// entry is one sandbox in the table.
type entry struct {
	// abort ends a create that is under way.
	abort context.CancelCauseFunc
	// doomed is closed to have the owner take the sandbox down, by the one who
	// condemned it. gone is closed when nothing is left.
	doomed, gone chan struct{}

	// began is when the sandbox was asked for, on the monotonic clock.
	began time.Time

	// setting is held by whoever sets its egress. record is held by whoever writes
	// its record, as the store wants it, and is the only lock held across I/O: when
	// the state is recorded, none that was before it can follow.
	setting chan struct{}
	record  sync.Mutex

	// mu guards what follows. It is never held across I/O.
	mu sync.Mutex
	sb sandbox.Sandbox
	vm *provision.VM
	// execs is how many programs run, and idleSince when the last of them ended.
	execs     int
	idleSince time.Time
	// refused are the programs that run, and those that ended and were refused to
	// reach something, in the order of their starts.
	refused []*refusals
	// once is the programs that are to be started once and have clients who wait.
	once map[sandbox.ExecID]*sharedExec
	// remove takes down what is left of a sandbox that was lost, and has no vm.
	remove func(context.Context) error
	// end is why the sandbox is taken down.
	end reason
	// shown says that clients still find the sandbox though it is being taken down,
	// because its record does not say so yet.
	shown bool
	// left says that the next daemon is to go on with it.
	left bool
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

// visible is snapshot for clients: it returns a sandbox that runs as far as the
// next daemon would know, and tells whether this is one.
func (en *entry) visible() (sandbox.Sandbox, *provision.VM, bool) {
	sb, vm := en.snapshot()
	en.mu.Lock()
	defer en.mu.Unlock()
	if en.shown {
		sb.State = sandbox.Running
	}
	return sb, vm, sb.State == sandbox.Running
}

// New returns an engine with no sandboxes. If an earlier daemon left any, it
// makes none before it has recovered them. The caller closes the engine, or has
// it leave.
func New(cfg Config) (*Engine, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Uptime == nil {
		cfg.Uptime = hostUptime
	}
	if cfg.Foreground == nil {
		cfg.Foreground = provision.NewForeground(1)
	}
	e := &Engine{
		cfg: cfg, entries: make(map[sandbox.ID]*entry),
		answers: newAnswers(cfg.OnceKeys),
		alarm:   newAlarm(cfg.Now), quit: make(chan struct{}), leave: make(chan struct{}),
	}
	e.staying, e.depart = context.WithCancelCause(context.Background())
	var err error
	if e.found, err = e.look(); err != nil {
		return nil, err
	}
	e.wg.Go(e.watchDeadlines)
	return e, nil
}

// Ready returns nil as long as sandboxes can be created.
func (e *Engine) Ready() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.refusal()
}

// refusal returns why no sandbox can be created. The caller holds e.mu.
func (e *Engine) refusal() error {
	switch {
	case e.closing:
		return sandbox.ErrClosing
	case e.found != nil:
		return sandbox.ErrStarting
	}
	return nil
}

// Get returns one sandbox that is running.
func (e *Engine) Get(id sandbox.ID) (sandbox.Sandbox, error) {
	en := e.find(id)
	if en == nil {
		return sandbox.Sandbox{}, sandbox.ErrNotFound
	}
	sb, _, there := en.visible()
	if !there {
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
		if sb, _, there := en.visible(); there {
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
// first, nothing is left of it, unless it is to be carried out once: then it is
// made all the same, and whoever asks again gets it.
func (e *Engine) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if !spec.Once.IsZero() {
		return e.createOnce(ctx, spec)
	}
	return e.create(ctx, spec)
}

func (e *Engine) create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	p, err := e.cfg.Packs.Get(cmp.Or(spec.Pack, sandbox.DefaultPack))
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	limits, err := e.cfg.Limits.Resolve(spec.Limits)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	policy, err := e.resolveEgress(spec.Egress)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	e.cfg.Foreground.Enter()
	defer e.cfg.Foreground.Leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	en, err := e.reserve(p, limits, policy, spec.Once, cancel)
	if err != nil {
		e.tellRejected(p.Name, err)
		return sandbox.Sandbox{}, err
	}
	defer e.wg.Done()

	sb, _ := en.snapshot()
	e.tell(sb, sandbox.Event{Kind: sandbox.EventCreated})
	if err := e.bringUp(ctx, en, p, spec.BootPath); err != nil {
		defer e.tellFailed(ctx, en, err)
		return sandbox.Sandbox{}, fmt.Errorf("create %s: %w", sb.ID, errors.Join(err, e.abandon(ctx, en)))
	}
	sb, _ = en.snapshot()
	return sb, nil
}

// reserve puts a new sandbox into the table, where Close and the next daemon
// can see it, if there is room for it. The caller owns one count of e.wg.
func (e *Engine) reserve(p pack.Pack, limits sandbox.Limits, policy *sandbox.Egress, once sandbox.Once, abort context.CancelCauseFunc) (*entry, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.refusal(); err != nil {
		return nil, err
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
		abort:   abort,
		doomed:  make(chan struct{}),
		gone:    make(chan struct{}),
		setting: make(chan struct{}, 1),
		began:   now,
		sb: sandbox.Sandbox{
			ID: id, Pack: p.Name, Limits: limits, Egress: policy, State: sandbox.Creating,
			CreatedAt: now.UTC(), AskedAt: e.cfg.Uptime(), ExpiresAt: now.Add(limits.Lifetime).UTC(), Once: once,
		},
	}
	e.entries[id] = en
	e.promise(limits.Size)
	e.wg.Add(1)
	return en, nil
}

// bringUp does what makes a reserved sandbox run, and gives it to its watcher.
// On error the caller still owns it.
func (e *Engine) bringUp(ctx context.Context, en *entry, p pack.Pack, path sandbox.BootPath) error {
	sb, _ := en.snapshot()
	if err := e.cfg.Faults.Hit(FaultProvide); err != nil {
		return err
	}
	span := trace.From(ctx)
	span.Set("emberd.id", string(sb.ID))
	span.Set("emberd.pack", sb.Pack)
	vm, err := e.cfg.Provisioner.Provision(ctx, provision.Request{
		Pack: p, Limits: sb.Limits, BootPath: path, Egress: sb.Egress,
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
	span.Set("emberd.boot_path", string(vm.BootPath))
	if sb.Egress != nil && vm.Network() == nil {
		return errors.New("the microVM has no network interface")
	}
	if err := e.cfg.Faults.Hit(FaultReady); err != nil {
		return err
	}
	running := sb
	running.State = sb.State.To(sandbox.Running)
	if err := e.cfg.Store.Put(running); err != nil {
		return err
	}
	e.auditPolicy(running)

	en.mu.Lock()
	defer en.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	en.sb = running
	en.idleSince = e.cfg.Now()
	took := en.idleSince.Sub(en.began)
	e.tell(running, sandbox.Event{Kind: sandbox.EventReady, Took: took})
	next, _ := en.deadline()
	e.alarm.by(next)
	e.wg.Go(func() {
		e.letAnswer(en)
		e.cfg.Log.Info("sandbox created", "sandbox_id", sb.ID, "vm", sb.VM, "pack", sb.Pack,
			"boot_path", sb.BootPath, "duration_ms", took.Milliseconds())
		e.watch(context.WithoutCancel(ctx), en, vm)
	})
	return nil
}
