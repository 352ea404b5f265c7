package pool

import (
	"errors"
	"testing"

	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// A VM that is to have a network interface is made when it is asked for, and no
// request for one is a miss.
func TestEgressIsNotServedFromThePool(t *testing.T) {
	networks := &fctest.Networks{}
	f := newFixture(t, Bounds{1, 1})
	networks.Launcher = f.launcher
	cold := f.cold
	cold.Networks = networks
	f.await("it is full", ready(1))
	f.cfg.Source = provision.NewCold(cold) // which the pool does not read as long as it is full
	req := f.request()
	req.Egress = &sandbox.Egress{}
	vm := f.get(req)
	if vm.BootPath != sandbox.ColdBoot || vm.Network() == nil {
		t.Errorf("by %s, with the interface %v", vm.BootPath, vm.Network())
	}
	req.BootPath = sandbox.Pooled
	if err := errorOf(f.Provision(t.Context(), req)); !errors.Is(err, sandbox.ErrCapacity) {
		t.Errorf("one of the pool's: %v", err)
	}
	if s := f.Status()[0]; s.Ready != 1 || s.Hits != 0 || s.Misses != 0 {
		t.Errorf("it is %+v", s)
	}
}
