package pool

import (
	"slices"
	"time"

	"github.com/emberd/emberd/internal/provision"
)

// shelf is the VMs of one stock. The pool's lock guards it.
type shelf struct {
	stock Stock
	// waiting VMs, the oldest first.
	waiting []*provision.VM
	// apart is how many are being made or cleared, which count too.
	apart  int
	target int
	// lowered is when the target was last changed, or found too low.
	lowered time.Time
	// raw is a shelf for which nothing was done before its first VM.
	raw bool
	// failures in a row, and when to try again after them.
	failures int
	retry    time.Time
	counts   Status
}

// alive says that nothing is known to be wrong with vm.
func alive(vm *provision.VM) bool {
	select {
	case <-vm.Done():
	case <-vm.Agent.Done():
	default:
		return true
	}
	return false
}

// holds says whether the VMs here are what is asked for.
func (s *shelf) holds(req provision.Request) bool {
	ours, theirs := s.stock.Limits, req.Limits
	return s.stock.Pack.Name == req.Pack.Name && ours.Size == theirs.Size &&
		ours.DiskMiB == theirs.DiskMiB && ours.PIDs == theirs.PIDs
}

// take removes the oldest VM, nil if there is none. One that has just ended is
// left to whoever watches it.
func (s *shelf) take() *provision.VM {
	i := slices.IndexFunc(s.waiting, alive)
	if i < 0 {
		return nil
	}
	vm := s.waiting[i]
	s.remove(vm)
	s.counts.Hits++
	s.failures = 0
	return vm
}

// remove takes vm off the shelf, and tells whether it was there.
func (s *shelf) remove(vm *provision.VM) bool {
	i := slices.Index(s.waiting, vm)
	if i < 0 {
		return false
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return true
}

// missed raises the target, because there was a request and no VM.
func (s *shelf) missed(now time.Time) {
	s.counts.Misses++
	s.target = min(s.target+1, s.stock.Bounds.Max)
	s.lowered = now
}

// failed has the shelf left alone for a while, the longer the more often it
// failed in a row.
func (s *shelf) failed(now time.Time, at tempo) {
	s.counts.Failures++
	pause := at.longPause
	if s.failures < 16 { // beyond which the shift is no longer a duration
		pause = min(at.firstPause<<s.failures, at.longPause)
	}
	s.failures++
	s.retry = now.Add(pause)
}

// relax lowers the target if there was no miss for long enough.
func (s *shelf) relax(now time.Time, at tempo) {
	if s.target > s.stock.Bounds.Min && now.Sub(s.lowered) >= at.decay {
		s.target--
		s.lowered = now
	}
}

// lacks says whether a VM is to be made, as far as there is room for it.
func (s *shelf) lacks() bool {
	return len(s.waiting) < s.target && len(s.waiting)+s.apart < s.stock.Bounds.Max
}

// due is when there may be something to do for the shelf though nobody touches
// it, zero if never.
func (s *shelf) due(at tempo) time.Time {
	switch {
	case s.lacks():
		return s.retry
	case s.target > s.stock.Bounds.Min:
		return s.lowered.Add(at.decay)
	}
	return time.Time{}
}
