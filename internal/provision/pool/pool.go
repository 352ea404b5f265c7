// Package pool keeps microVMs ready for sandboxes that nobody has asked for yet.
//
// The one idea: the pool is a [provision.Provisioner] around a slower one, which
// fills it while nobody waits. A request takes what stands ready, and what the
// pool does not have comes from the other one.
//
// The invariant: a VM stands in the pool or belongs to one sandbox, and never
// comes back. Of each kind there are no more in the pool than its bounds allow,
// those included that are being made or cleared; so whoever sets their memory
// aside has promised it to nobody else. A VM that ends or falls silent while it
// waits is replaced.
//
// The pool keeps no records: that of a VM says whether a sandbox has ever had it,
// and the pool of the next daemon takes over those of which none has.
package pool

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of the pool's steps.
const (
	FaultRefill   = "pool.refill"
	FaultPrepare  = "pool.prepare"
	FaultHandover = "pool.handover"
)

// FaultPoints are the steps that a test can break. The first two fail a refill,
// and no request; the last one fails the request.
var FaultPoints = []string{FaultRefill, FaultPrepare, FaultHandover}

// Bounds is how many VMs of a kind are kept: Min when it is quiet, and up to Max
// when they are asked for faster than they are made.
type Bounds struct{ Min, Max int }

// Stock is one kind of VM to keep.
type Stock struct {
	Pack pack.Pack
	// Limits are those that a VM is made with: its size, disk and processes.
	Limits sandbox.Limits
	Bounds Bounds
}

// MemoryMiB is the memory of the host that the stock may come to use.
func (s Stock) MemoryMiB() int { return s.Bounds.Max * s.Limits.PromisedMiB() }

// Config is what a pool works with.
type Config struct {
	Source provision.Provisioner
	Stocks []Stock
	// Before, if set, is called before the first VM of a stock is made. What it
	// builds makes refills cheaper; they take place even if it fails.
	Before func(context.Context, Stock) error
	// Prepare, if set, is called with each VM before it is offered.
	Prepare func(context.Context, *provision.VM) error
	// Foreground is what refills stand back for.
	Foreground *provision.Foreground

	Log    *slog.Logger
	Faults *fault.Set
}

// tempo is how fast the pool works.
type tempo struct {
	// A waiting VM is asked for a sign of life every check, and has silence to
	// give it. One that hangs since is found out by its sandbox.
	check, silence time.Duration
	// decay is how long after the last miss, and after each step, the target goes
	// down by one.
	decay time.Duration
	// A refill begins in a lull between requests, or when patience is over.
	lull, patience time.Duration
	// After a failure a stock is left alone for firstPause, and up to longPause
	// when it fails again and again.
	firstPause, longPause time.Duration
	// prepare bounds the preparing of one VM.
	prepare time.Duration
}

var normal = tempo{
	check: 5 * time.Second, silence: 5 * time.Second,
	decay: time.Minute, lull: provision.Lull, patience: provision.Patience,
	firstPause: time.Second, longPause: time.Minute,
	prepare: 30 * time.Second,
}

// Pool keeps VMs ready. Its methods may be called by any number of goroutines.
type Pool struct {
	cfg   Config
	tempo tempo
	// ctx ends what is being made; quit, which is closed, ends the goroutines.
	ctx    context.Context
	cancel context.CancelCauseFunc
	quit   chan struct{}
	wg     sync.WaitGroup
	// leave is closed before quit if the VMs that wait are to go on.
	leave chan struct{}
	// wake has the filler look again.
	wake chan struct{}

	mu      sync.Mutex
	closing bool
	shelves []*shelf
	// stuck are VMs that could not be cleared before the pool was closed.
	stuck []*provision.VM
}

// New returns a pool that makes nothing until it is started. The caller closes
// it, or has it leave.
func New(cfg Config) *Pool { return newPool(cfg, normal) }

func newPool(cfg Config, at tempo) *Pool {
	p := &Pool{
		cfg: cfg, tempo: at,
		quit: make(chan struct{}), leave: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	for _, stock := range cfg.Stocks {
		p.shelves = append(p.shelves, &shelf{stock: stock, target: stock.Bounds.Min, raw: cfg.Before != nil})
	}
	return p
}

// Start has the pool fill itself. It is called once, before the pool is closed.
func (p *Pool) Start() { p.wg.Go(p.fill) }

// Provision takes a VM from the pool, or has the source make one. Taking one
// waits for nothing. Those of the pool have no network interface: one that is to
// have one is made.
func (p *Pool) Provision(ctx context.Context, req provision.Request) (*provision.VM, error) {
	if req.Egress != nil && req.BootPath == sandbox.Pooled {
		return nil, sandbox.NoBootPath(req.BootPath, "the pool keeps none that have a network interface")
	}
	if req.Egress == nil && (req.BootPath == "" || req.BootPath == sandbox.Pooled) {
		if err := p.cfg.Faults.Hit(FaultHandover); err != nil {
			return nil, err
		}
		vm, why := p.take(req)
		if vm != nil {
			if err := vm.Claim(); err != nil {
				return nil, errors.Join(err, vm.Kill(ctx))
			}
			vm.BootPath = sandbox.Pooled
			return vm, nil
		}
		if req.BootPath != "" {
			return nil, sandbox.NoBootPath(req.BootPath, why)
		}
	}
	return p.cfg.Source.Provision(ctx, req)
}

// take returns the VM that has waited longest, or why there is none.
func (p *Pool) take(req provision.Request) (vm *provision.VM, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shelves {
		if !s.holds(req) {
			continue
		}
		vm := s.take()
		if vm == nil {
			s.missed(time.Now())
		}
		// No refill begins before there was a lull, so until then the filler is left
		// asleep: waking it is time that the client waits.
		time.AfterFunc(p.tempo.lull, p.lookAgain)
		return vm, "none is waiting in the pool"
	}
	return nil, "there is no pool of that pack with those limits"
}

// Status is how one stock stands, and what became of it since the daemon began.
type Status struct {
	Stock Stock
	// Ready VMs are waiting, Busy ones are being made or cleared; Target is how many
	// should wait now.
	Ready, Busy, Target int
	// Hits and Misses are requests that found one, or none. Failures are refills
	// that failed and VMs that ended while they waited.
	Hits, Misses, Refills, Failures int64
}

// Status returns how each stock stands, in the order of [Config.Stocks].
func (p *Pool) Status() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Status, len(p.shelves))
	for i, s := range p.shelves {
		all[i] = s.counts
		all[i].Stock, all[i].Ready, all[i].Busy, all[i].Target = s.stock, len(s.waiting), s.apart, s.target
	}
	return all
}

// Close ends refills, kills the VMs that wait and returns when nothing is left
// of them. It may be called again, which tries again what could not be done.
func (p *Pool) Close(ctx context.Context) error {
	p.end(false)
	p.mu.Lock()
	stuck := p.stuck
	p.stuck = nil
	p.mu.Unlock()
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	var errs []error
	for _, vm := range stuck {
		if err := vm.Kill(ctx); err != nil {
			errs = append(errs, err)
			p.strand(vm)
		}
	}
	return errors.Join(errs...)
}

// Leave ends refills and lets go of the VMs that wait: they go on, and the next
// daemon's pool with them. It may be called again.
func (p *Pool) Leave() {
	p.end(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shelves {
		for _, vm := range s.waiting {
			vm.Leave()
		}
		s.waiting = nil
	}
}

// end ends everything that the pool does, and returns when it has ended.
func (p *Pool) end(leave bool) {
	p.mu.Lock()
	if !p.closing {
		if leave {
			close(p.leave)
		}
		close(p.quit)
	}
	p.closing = true
	p.mu.Unlock()
	p.cancel(sandbox.ErrClosing)
	p.wg.Wait()
}

// strand keeps a VM that could not be cleared, for Close.
func (p *Pool) strand(vm *provision.VM) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck = append(p.stuck, vm)
}
