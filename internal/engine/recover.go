package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/x/cleanup"
)

// Adopter takes over the VMs that an earlier daemon left.
type Adopter interface {
	// Left names the VMs of which anything was left when this daemon began.
	Left() []sandbox.VMID
	// Adopt returns the VM of a record, if it is the very one and its agent
	// answers. It has a network interface with that policy, or none without. After
	// an error the VM is to be removed.
	Adopt(ctx context.Context, rec store.VM, policy *sandbox.Egress) (*provision.VM, error)
	// Remove ends a VM that was not adopted and removes everything that was made
	// for it. That there is nothing is no error.
	Remove(ctx context.Context, id sandbox.VMID) error
}

// Spares takes VMs that no sandbox has, and none ever had.
type Spares interface {
	// Wants says whether it has a use for the VM of a record.
	Wants(rec store.VM) bool
	// Adopt takes the VM, and tells whether it did.
	Adopt(rec store.VM, vm *provision.VM) bool
}

// adoptTimeout is how long a VM may take to show that it can be gone on with, and
// adoptParallel how many are asked at a time. An agent answers in milliseconds;
// under emulation, where eight guests share a CPU with everything else, it takes
// seconds. One that hangs costs the daemon's start no more than this.
const (
	adoptTimeout  = 10 * time.Second
	adoptParallel = 8
)

// errSilent is why a VM that did not answer in time is lost.
var errSilent = errors.New("its agent did not answer")

// found is what an earlier daemon left.
type found struct {
	sandboxes []sandbox.Sandbox
	vms       map[sandbox.VMID]store.VM
	left      []sandbox.VMID
	// held are the VMs that may be a sandbox's whose record cannot be read. They
	// are left alone.
	held map[sandbox.VMID]bool
}

// look returns what an earlier daemon left, nil if that is nothing.
func (e *Engine) look() (*found, error) {
	f := &found{vms: make(map[sandbox.VMID]store.VM), held: make(map[sandbox.VMID]bool)}
	var err error
	if f.sandboxes, err = e.cfg.Store.Load(); err != nil {
		e.cfg.Log.Error("records of sandboxes that cannot be read were set aside", "err", err)
	}
	e.answers.recall(e.remember(f.sandboxes))
	vms, err := e.cfg.Store.LoadVMs()
	if err != nil {
		e.cfg.Log.Error("records of microVMs that cannot be read were set aside", "err", err)
	}
	for _, vm := range vms {
		f.vms[vm.ID] = vm
	}
	if e.cfg.Adopter != nil {
		f.left = e.cfg.Adopter.Left()
	}
	damagedSandboxes, damagedVMs, err := e.cfg.Store.SetAside()
	if err != nil {
		return nil, err
	}
	for _, name := range damagedVMs {
		f.held[sandbox.VMID(name)] = true
	}
	if len(damagedSandboxes) > 0 {
		// Any VM that no other sandbox names may be one of theirs.
		for id := range f.vms {
			f.held[id] = true
		}
		for _, sb := range f.sandboxes {
			if f.vms[sb.VM].ID != "" {
				delete(f.held, sb.VM)
			}
		}
	}
	if len(f.sandboxes) == 0 && len(f.vms) == 0 && len(f.left) == 0 {
		return nil, nil
	}
	return f, nil
}

// Recover goes on with what an earlier daemon left: sandboxes that ran are taken
// over or, if that cannot be, are lost and taken down; VMs that no sandbox had
// are given to Spares; everything else is removed. When ctx ends, what was not
// seen to is left to the next daemon.
func (e *Engine) Recover(ctx context.Context) {
	e.mu.Lock()
	f := e.found
	e.mu.Unlock()
	if f == nil {
		return
	}
	began := time.Now()
	var tally tally
	jobs := e.jobs(f, &tally)
	turns := make(chan struct{}, adoptParallel)
	var running sync.WaitGroup
	for _, job := range jobs {
		turns <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		running.Go(func() {
			defer func() { <-turns }()
			// An adoption that was broken off would be a sandbox lost.
			job(context.WithoutCancel(ctx))
		})
	}
	running.Wait()
	if ctx.Err() != nil {
		return
	}
	for id := range f.held {
		e.cfg.Log.Error("a microVM may be of a sandbox whose record cannot be read, and is left alone", "vm", id)
	}
	e.mu.Lock()
	e.found = nil
	e.mu.Unlock()
	e.alarm.by(e.cfg.Now())
	e.cfg.Log.Info("went on with what an earlier emberd left", "adopted", tally.of(adopted), "lost", tally.of(isLost),
		"spare", tally.of(spare), "removed", tally.of(removed), "duration_ms", time.Since(began).Milliseconds())
}

// fate is what became of something that was found.
type fate int

const (
	adopted fate = iota
	isLost
	spare
	removed
	fates
)

// tally counts fates.
type tally struct {
	mu sync.Mutex
	n  [fates]int
}

func (t *tally) count(f fate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n[f]++
}

func (t *tally) of(f fate) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n[f]
}

// jobs is what there is to do about what was found, a job for each VM.
func (e *Engine) jobs(f *found, t *tally) (jobs []func(context.Context)) {
	claimed := make(map[sandbox.VMID]bool)
	for _, sb := range f.sandboxes {
		rec, known := f.vms[sb.VM]
		claimed[sb.VM] = true
		switch {
		case sb.State == sandbox.Running && f.held[sb.VM]:
			e.cfg.Log.Error("sandbox is out of reach, as the record of its microVM cannot be read", "sandbox_id", sb.ID, "vm", sb.VM)
		case sb.State == sandbox.Running && known:
			jobs = append(jobs, func(ctx context.Context) { e.goOn(ctx, sb, rec, t) })
		case sb.State == sandbox.Running:
			jobs = append(jobs, func(ctx context.Context) {
				t.count(isLost)
				e.lose(ctx, sb, lost, errors.New("there is no record of its microVM"))
			})
		default:
			if sb.State == sandbox.Creating { // nobody was told of it
				sb.Once = sandbox.Once{}
			}
			jobs = append(jobs, func(ctx context.Context) {
				t.count(removed)
				e.lose(ctx, sb, unfinished, nil)
			})
		}
	}
	for id, rec := range f.vms {
		if claimed[id] || f.held[id] {
			continue
		}
		claimed[id] = true
		jobs = append(jobs, func(ctx context.Context) { e.spare(ctx, rec, t) })
	}
	for _, id := range f.left {
		if claimed[id] || f.held[id] {
			continue
		}
		jobs = append(jobs, func(ctx context.Context) {
			t.count(removed)
			e.sweep(ctx, id)
		})
	}
	return jobs
}

// goOn takes over a sandbox that ran, or loses it.
func (e *Engine) goOn(ctx context.Context, sb sandbox.Sandbox, rec store.VM, t *tally) {
	vm, err := e.adopt(ctx, rec, sb.Egress)
	if err != nil {
		t.count(isLost)
		e.lose(ctx, sb, lost, err)
		return
	}
	t.count(adopted)
	now := e.cfg.Now()
	en := e.enlist(sb, now)
	en.mu.Lock()
	en.vm, en.idleSince = vm, now
	sb = en.sb
	en.mu.Unlock()
	e.tell(sb, sandbox.Event{Kind: sandbox.EventAdopted})
	e.cfg.Log.Info("sandbox adopted", "sandbox_id", sb.ID, "vm", sb.VM, "pack", sb.Pack, "expires_at", sb.ExpiresAt)
	e.wg.Go(func() { e.watch(ctx, en, vm) })
	if err := e.resumeExecs(ctx, en); err != nil {
		e.cfg.Log.Warn("programs of an adopted sandbox were not counted", "sandbox_id", sb.ID, "err", err)
	}
}

// adopt takes over a VM. On error it is still to be removed.
func (e *Engine) adopt(ctx context.Context, rec store.VM, policy *sandbox.Egress) (*provision.VM, error) {
	if err := e.cfg.Faults.Hit(FaultRecover); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, adoptTimeout, errSilent)
	defer cancel()
	return e.cfg.Adopter.Adopt(ctx, rec, policy)
}

// enlist puts a sandbox of an earlier daemon into the table. Its deadline stays
// where it was in the time that has really passed, whatever the clock says.
func (e *Engine) enlist(sb sandbox.Sandbox, now time.Time) *entry {
	began := now.Add(-max(0, e.cfg.Uptime()-sb.AskedAt))
	sb.ExpiresAt = began.Add(sb.Limits.Lifetime).UTC()
	en := &entry{
		abort: func(error) {}, doomed: make(chan struct{}), gone: make(chan struct{}), setting: make(chan struct{}, 1), began: began, sb: sb,
		remove: func(ctx context.Context) error {
			if sb.VM == "" {
				return nil
			}
			return e.cfg.Adopter.Remove(ctx, sb.VM)
		},
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.entries[sb.ID] = en
	e.promise(sb.Limits.Size)
	return en
}

// lose takes down what is left of a sandbox that cannot be gone on with. Until
// nothing is, it counts.
func (e *Engine) lose(ctx context.Context, sb sandbox.Sandbox, why reason, cause error) {
	if cause != nil {
		e.cfg.Log.Error("sandbox lost", "sandbox_id", sb.ID, "vm", sb.VM, "pack", sb.Pack, "err", cause)
	}
	en := e.enlist(sb, e.cfg.Now())
	en.mu.Lock()
	if en.sb.State != sandbox.Deleting {
		en.sentence(why)
	}
	en.end = why
	en.mu.Unlock()
	if why == lost { // and is so for every daemon from now on
		_ = e.doom(en) // logged, and here it is taken down
	} else {
		close(en.doomed)
	}
	clean, cancel := cleanup.Context(ctx)
	defer cancel()
	if err := e.takeDown(clean, en); err != nil {
		e.wg.Go(func() { e.clear(ctx, en) })
	}
}

// spare gives a VM that no sandbox has to whoever has a use for it, or removes
// it.
func (e *Engine) spare(ctx context.Context, rec store.VM, t *tally) {
	if !rec.Spare || e.cfg.Spares == nil || !e.cfg.Spares.Wants(rec) {
		t.count(removed)
		e.sweep(ctx, rec.ID)
		return
	}
	vm, err := e.adopt(ctx, rec, nil)
	switch {
	case err != nil:
		e.cfg.Log.Warn("a microVM that no sandbox had was lost", "vm", rec.ID, "pack", rec.Pack, "err", err)
		t.count(removed)
		e.sweep(ctx, rec.ID)
	case e.cfg.Spares.Adopt(rec, vm):
		t.count(spare)
	default:
		t.count(removed)
		e.persist(ctx, rec.ID, vm.Kill)
	}
}

// sweep removes what is left of a VM that was not adopted.
func (e *Engine) sweep(ctx context.Context, id sandbox.VMID) {
	e.persist(ctx, id, func(ctx context.Context) error { return e.cfg.Adopter.Remove(ctx, id) })
}

// persist removes a VM. What cannot be done now is tried again in the
// background.
func (e *Engine) persist(ctx context.Context, id sandbox.VMID, remove func(context.Context) error) {
	clean, cancel := cleanup.Context(ctx)
	defer cancel()
	tell := func(err error) {
		e.cfg.Log.Error("what an earlier emberd left of a microVM was not removed", "vm", id, "err", err)
	}
	err := remove(clean)
	if err == nil {
		return
	}
	tell(err)
	e.wg.Go(func() { _ = cleanup.Persist(ctx, e.quit, remove, tell) })
}

// hostUptime is how long the host is up, as the clock that [time.Time] counts by
// has it.
func hostUptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("engine: the host has no monotonic clock: %v", err))
	}
	return time.Duration(ts.Nano())
}
