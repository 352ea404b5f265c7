package pool

import (
	"time"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/version"
)

// Wants says whether the pool would make a VM like that of the record today, and
// has room for it.
func (p *Pool) Wants(rec store.VM) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shelfFor(rec) != nil
}

// Adopt takes a VM that an earlier daemon made and that nobody has used, if the
// pool still wants it.
func (p *Pool) Adopt(rec store.VM, vm *provision.VM) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelfFor(rec)
	if s == nil {
		return false
	}
	s.apart++
	// That there are so many says that they were asked for.
	s.target, s.lowered = max(s.target, len(s.waiting)+s.apart), time.Now()
	p.wg.Go(func() {
		// The earlier daemon may not have come to it.
		err := p.prepare(vm)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.shelve(s, vm, err)
	})
	return true
}

// shelfFor returns the shelf that a VM belongs on, nil if there is none or it is
// full. The caller holds p.mu.
func (p *Pool) shelfFor(rec store.VM) *shelf {
	if p.closing || rec.Emberd != version.Version || rec.Network {
		return nil
	}
	for _, s := range p.shelves {
		wanted := provision.Request{Pack: s.stock.Pack, Limits: rec.Limits}
		if s.stock.Pack.Name == rec.Pack && s.stock.Pack.Digest == rec.Rootfs && s.holds(wanted) &&
			len(s.waiting)+s.apart < s.stock.Bounds.Max {
			return s
		}
	}
	return nil
}

// left tells whether the VMs that wait are the next daemon's.
func (p *Pool) left() bool {
	select {
	case <-p.leave:
		return true
	default:
		return false
	}
}
