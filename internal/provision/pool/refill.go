package pool

import (
	"context"
	"slices"
	"time"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
)

// fill makes one VM after the other as long as a shelf lacks some.
func (p *Pool) fill() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-timer.C:
		case <-p.wake:
		}
		s, due := p.next(time.Now())
		switch {
		case s != nil:
			p.refill(s)
			p.lookAgain()
		case due.IsZero():
			timer.Stop()
		default:
			timer.Reset(time.Until(due))
		}
	}
}

// lookAgain has the filler look at the shelves, because one has changed.
func (p *Pool) lookAgain() {
	select {
	case p.wake <- struct{}{}:
	default: // it is going to look in any case
	}
}

// next has the shelves let go of what they have too much of. It returns the one
// that is to be filled next, which is the emptiest; the VM to be made is counted.
// If there is none it returns when to look again, zero if something has to
// happen before.
func (p *Pool) next(now time.Time) (first *shelf, due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shelves {
		s.relax(now, p.tempo)
		for len(s.waiting) > s.target {
			vm := s.waiting[len(s.waiting)-1]
			s.remove(vm)
			s.apart++
			p.wg.Go(func() { p.discard(s, vm) })
		}
		at := s.due(p.tempo)
		switch {
		case s.lacks() && !at.After(now):
			if first == nil || len(s.waiting) < len(first.waiting) {
				first = s
			}
		case !at.IsZero() && (due.IsZero() || at.Before(due)):
			due = at
		}
	}
	if first != nil {
		first.apart++
	}
	return first, due
}

// refill makes one VM for the shelf, which has counted it.
func (p *Pool) refill(s *shelf) {
	if s.raw {
		s.raw = false
		if err := p.cfg.Before(p.ctx, s.stock); err != nil && p.ctx.Err() == nil {
			p.cfg.Log.Warn("refills of the pool will take longer", "pack", s.stock.Pack.Name, "err", err)
		}
	}
	p.cfg.Foreground.StandBack(p.quit, p.tempo.lull, p.tempo.patience)
	vm, err := p.supply(s)
	if err == nil {
		err = p.prepare(vm)
	}
	if err != nil && p.ctx.Err() == nil {
		p.cfg.Log.Warn("the pool was not refilled", "pack", s.stock.Pack.Name, "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		s.counts.Refills++
	}
	p.shelve(s, vm, err)
}

// shelve offers a VM that the shelf has counted, unless there is an error: then
// the VM, if there is any, is cleared. The caller holds p.mu.
func (p *Pool) shelve(s *shelf, vm *provision.VM, err error) {
	switch {
	case err == nil:
		s.apart--
		s.waiting = append(s.waiting, vm)
		p.wg.Go(func() { p.guard(s, vm) })
	case vm != nil:
		s.failed(time.Now(), p.tempo)
		p.wg.Go(func() { p.discard(s, vm) })
	default:
		s.apart--
		s.failed(time.Now(), p.tempo)
	}
}

// supply has the source make a VM for the shelf.
func (p *Pool) supply(s *shelf) (*provision.VM, error) {
	if err := p.cfg.Faults.Hit(FaultRefill); err != nil {
		return nil, err
	}
	return p.cfg.Source.Provision(p.ctx, provision.Request{
		Pack: s.stock.Pack, Limits: s.stock.Limits, Ahead: true,
		// It is no sandbox's, so there is no record of it.
		Begin: func(sandbox.VMID) error { return nil },
	})
}

func (p *Pool) prepare(vm *provision.VM) error {
	if err := p.cfg.Faults.Hit(FaultPrepare); err != nil {
		return err
	}
	if p.cfg.Prepare == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.tempo.prepare)
	defer cancel()
	return p.cfg.Prepare(ctx, vm)
}

// guard watches a VM while it waits, and clears it if it is of no use any more.
// Nobody tells it when the VM is taken, as that would be on the client's time.
func (p *Pool) guard(s *shelf, vm *provision.VM) {
	fault := p.awaitEnd(s, vm)
	p.mu.Lock()
	if fault == "" && p.left() || !s.remove(vm) {
		p.mu.Unlock()
		return // it is somebody's, who watches it, or the next daemon's
	}
	s.apart++
	if fault != "" {
		s.failed(time.Now(), p.tempo)
	}
	p.mu.Unlock()
	if fault != "" {
		p.cfg.Log.Warn("a microVM of the pool is of no use", "vm", vm.ID, "pack", s.stock.Pack.Name, "reason", fault)
	}
	p.discard(s, vm)
}

// awaitEnd returns what is wrong with a VM, "" when it was taken or the pool is
// closed. What is wrong with one that was taken is somebody else's matter.
func (p *Pool) awaitEnd(s *shelf, vm *provision.VM) (fault string) {
	tick := time.NewTicker(p.tempo.check)
	defer tick.Stop()
	for {
		select {
		case <-p.quit:
			return ""
		case <-vm.Done():
			return "it ended"
		case <-vm.Agent.Done():
			return "the connection to its agent broke"
		case <-tick.C:
			if !p.waits(s, vm) {
				return ""
			}
			err := vm.Ping(p.ctx, p.tempo.silence)
			switch {
			case p.ctx.Err() != nil:
				return ""
			case err != nil:
				return "its agent did not answer"
			}
			p.mu.Lock()
			s.failures = 0 // this stock works
			p.mu.Unlock()
		}
	}
}

// waits tells whether a VM is on its shelf.
func (p *Pool) waits(s *shelf, vm *provision.VM) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(s.waiting, vm)
}

// discard clears a VM that the shelf has counted. What cannot be cleared is tried
// again until the pool is closed, and takes up its room.
func (p *Pool) discard(s *shelf, vm *provision.VM) {
	err := cleanup.Persist(context.WithoutCancel(p.ctx), p.quit, vm.Kill, func(err error) {
		p.cfg.Log.Error("a microVM of the pool was not cleared", "vm", vm.ID, "err", err)
	})
	if err != nil {
		p.strand(vm)
		return
	}
	p.mu.Lock()
	s.apart--
	p.mu.Unlock()
	p.lookAgain()
}
