package template

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/x/fault"
)

// newNetworked is a fixture whose VMs can have network interfaces. In the end none
// may be open.
func newNetworked(t *testing.T) (*fixture, *fctest.Networks, *store.Store) {
	t.Helper()
	records, err := store.Open(paths.Run(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	networks := &fctest.Networks{}
	t.Cleanup(func() {
		if err := records.Close(); err != nil {
			t.Error(err)
		}
		if open := networks.Open(); len(open) > 0 {
			t.Errorf("interfaces left open: %v", open)
		}
	})
	f := newFixture(t, func(c *Config) {
		networks.Launcher, _ = c.Launcher.(*fctest.Launcher)
		c.Networks, c.Records = networks, records
		c.Cold = provision.NewCold(provision.ColdConfig{
			Launcher: c.Launcher, Kernel: c.Kernel, Initrd: c.Initrd, Timeout: 20 * time.Second, Parallel: 4,
			Records: records, Networks: networks, Log: c.Log, Faults: c.Faults,
		})
	})
	return f, networks, records
}

var policy = sandbox.Egress{Allow: []sandbox.EgressRule{{Host: "example.org"}}, RateKiBps: 7}

// get makes a VM that may reach what the policy says, which ends with the test.
func (f *fixture) get(egress *sandbox.Egress) *provision.VM {
	f.t.Helper()
	req := f.request()
	req.Egress = egress
	vm, err := f.Provision(f.t.Context(), req)
	if err != nil {
		f.t.Fatal(err)
	}
	return vm
}

func (f *fixture) kill(vm *provision.VM) {
	f.t.Helper()
	for range 2 {
		if err := vm.Kill(f.t.Context()); err != nil {
			f.t.Error(err)
		}
	}
}

// A VM with egress has an interface from before it was made, as it is booted and as
// it is restored, and its guest is armed with it. Its template is no other's.
func TestVMsWithANetworkInterface(t *testing.T) {
	f, networks, _ := newNetworked(t)
	f.build()
	if path := f.provide(); path != sandbox.Restored {
		t.Errorf("one without an interface came by %s", path)
	}
	guests := map[string]bool{}
	for i, path := range []sandbox.BootPath{sandbox.ColdBoot, sandbox.Restored, sandbox.Restored} {
		vm := f.get(&policy)
		if vm.BootPath != path || vm.Network() == nil {
			t.Fatalf("%d came by %s, with the interface %v", i, vm.BootPath, vm.Network())
		}
		network := networks.Open()[vm.ID]
		if network == nil || network != vm.Network() || len(network.Policy().Allow) != 1 || network.VMM.PID != vm.Jail().PID {
			t.Errorf("%d has %+v, with the interface %+v", i, vm.Jail(), network)
		}
		armed, err := f.launcher.Armed(vm.ID)
		want := network.Guest()
		if err != nil || !slices.Equal(armed.GetMac(), want.MAC) || !slices.Equal(armed.GetAddress(), want.Addr.AsSlice()) ||
			!slices.Equal(armed.GetGateway(), want.Gateway.AsSlice()) || armed.GetAddress6() != nil {
			t.Errorf("%d was armed with %v, %v, want %+v", i, armed, err, want)
		}
		guests[string(armed.GetMac())] = true
		f.kill(vm)
		if _, err := f.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize, Network: true}); err != nil {
			t.Fatal(err)
		}
	}
	if len(guests) != 3 {
		t.Errorf("there are %d addresses of three guests", len(guests))
	}
	list := f.List()
	if len(list) != 2 || list[0].ID == list[1].ID || list[0].Network == list[1].Network {
		t.Errorf("listed: %+v", list)
	}
	vm := f.get(nil)
	if armed, err := f.launcher.Armed(vm.ID); vm.BootPath != sandbox.Restored || vm.Network() != nil || armed != nil || err != nil {
		t.Errorf("one without came by %s, with the interface %v, armed with %v, %v", vm.BootPath, vm.Network(), armed, err)
	}
	f.kill(vm)

	// They are there for the next daemon.
	f.close()
	f.open()
	f.build()
	if list := f.List(); len(list) != 2 || list[0].State == list[1].State {
		t.Errorf("listed: %+v", list)
	}
	for _, info := range f.List() {
		if err := f.Remove(info.ID); err != nil {
			t.Error(err)
		}
	}
}

// Whatever step fails, nothing is left of the VM nor of its interface.
func TestEachStepWithANetworkIsUndone(t *testing.T) {
	f, networks, _ := newNetworked(t)
	kind := Kind{Pack: f.shell(), Size: sandbox.DefaultSize, Network: true}
	check := func(point string) {
		t.Helper()
		if open := networks.Open(); len(open) > 0 {
			t.Errorf("%s: interfaces left open: %v", point, open)
		}
		if pids := f.launcher.Running(); len(pids) > 0 {
			t.Errorf("%s: VMMs left running: %v", point, pids)
		}
	}
	once := func(point string) (hit *bool) {
		hit = new(bool)
		f.faults.Do(point, func() error {
			if *hit {
				return nil
			}
			*hit = true
			return &fault.Error{Point: point}
		})
		return hit
	}
	for _, point := range slices.Concat(FaultPoints, provision.FaultPoints, firecracker.FaultPoints, firecracker.InterfaceFaultPoints,
		firecracker.SnapshotFaultPoints, firecracker.RestoreFaultPoints) {
		hit := once(point)
		if _, err := f.Build(t.Context(), kind); err == nil || !*hit {
			t.Errorf("%s: built: %v, step reached: %v", point, err, *hit)
		}
		check(point)
	}
	if _, err := f.Build(t.Context(), kind); err != nil {
		t.Fatal(err)
	}
	for _, point := range slices.Concat(provision.FaultPoints, firecracker.RestoreFaultPoints, firecracker.RestoreInterfaceFaultPoints) {
		hit := once(point)
		vm := f.get(&policy)
		if vm.BootPath != sandbox.ColdBoot || !*hit {
			t.Errorf("%s: a VM came by %s", point, vm.BootPath)
		}
		f.kill(vm)
		check(point)
		vm = f.get(&policy)
		if vm.BootPath != sandbox.Restored {
			t.Errorf("after %s: a VM came by %s", point, vm.BootPath)
		}
		f.kill(vm)
	}
}

// An interface that cannot be made is told of as what it is, and is no fault of the
// template.
func TestNetworksThatFail(t *testing.T) {
	f, networks, _ := newNetworked(t)
	req := f.request()
	req.Egress = &policy
	for _, path := range []sandbox.BootPath{sandbox.ColdBoot, sandbox.Restored} {
		networks.Fail(errors.New("there is no TUN"))
		for range maxSuspect + 1 {
			_, err := f.Provision(t.Context(), req)
			if code, text := sandbox.Public(err); code != sandbox.CodeEgress || !strings.Contains(text, "doctor") || !strings.Contains(err.Error(), "there is no TUN") {
				t.Errorf("%s: %s, %q: %v", path, code, text, err)
			}
		}
		networks.Fail(sandbox.EgressUnavailable("load the module tun"))
		if _, text := sandbox.Public(second(f.Provision(t.Context(), req))); !strings.HasSuffix(text, "load the module tun") {
			t.Errorf("%s: told of %q", path, text)
		}
		networks.Fail(nil)
		if _, err := f.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize, Network: true}); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Counts().FailedRestores; n > 0 {
		t.Errorf("%d restores count as failed", n)
	}
	without := newFixture(t)
	req.Begin = func(sandbox.VMID) error { t.Error("it was begun"); return nil }
	for name, provide := range map[string]func() error{
		"templates": func() error { return second(without.Provision(t.Context(), req)) },
		"boots":     func() error { return second(without.cfg.Cold.Provision(t.Context(), req)) },
		"builds": func() error {
			_, err := without.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize, Network: true})
			return err
		},
	} {
		if err := provide(); !errors.Is(err, sandbox.ErrEgress) || !strings.Contains(err.Error(), "--egress") {
			t.Errorf("%s without networks: %v", name, err)
		}
	}
}

func second(_ *provision.VM, err error) error { return err }

// The next daemon takes over the interface with the VM, and neither without the
// other.
func TestAdoptionOfANetwork(t *testing.T) {
	f, networks, records := newNetworked(t)
	adopter := provision.Adopter{
		Host: provision.Host{Records: records, Log: f.cfg.Log, Faults: f.faults}, VMMs: f.launcher, Networks: networks,
	}
	leave := func(egress *sandbox.Egress) store.VM {
		t.Helper()
		req := f.request()
		req.Egress = egress
		// No template is made behind it, whose VMs would be there too.
		vm, err := f.cfg.Cold.Provision(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		vm.Leave()
		if open := networks.Open(); len(open) > 0 {
			t.Errorf("interfaces left open: %v", open)
		}
		recs, err := records.LoadVMs()
		if err != nil || len(recs) != 1 || recs[0].Network != (egress != nil) {
			t.Fatalf("records: %+v, %v", recs, err)
		}
		return recs[0]
	}
	rec := leave(&policy)
	other := sandbox.Egress{Allow: []sandbox.EgressRule{{Host: "a.example"}, {Host: "b.example"}}}
	vm, err := adopter.Adopt(t.Context(), rec, &other)
	if err != nil {
		t.Fatal(err)
	}
	if network := networks.Open()[rec.ID]; network == nil || network != vm.Network() || len(network.Policy().Allow) != 2 {
		t.Errorf("adopted with %+v", network)
	}
	f.kill(vm)

	noNetworks := adopter
	noNetworks.Networks = nil
	rec = leave(&policy)
	if vm, err = noNetworks.Adopt(t.Context(), rec, &policy); err != nil || vm.Network() != nil || len(networks.Open()) > 0 {
		t.Fatalf("where there are no networks any more: %+v, %v", vm, err)
	}
	f.kill(vm)

	for name, tt := range map[string]struct {
		made, policy *sandbox.Egress
		adopter      provision.Adopter
		spoil        func(store.VM)
		want         string
	}{
		"no policy":    {&policy, nil, adopter, nil, "network interface is true"},
		"no interface": {nil, &policy, adopter, nil, "network interface is false"},
		"no device": {&policy, &policy, adopter, func(rec store.VM) {
			if err := os.Remove(filepath.Join(f.launcher.Dir, string(rec.ID), "tap-tap0")); err != nil {
				t.Error(err)
			}
		}, "no such file"},
		"no answer": {&policy, &policy, adopter, func(store.VM) { f.faults.Fail(provision.FaultHello) }, provision.FaultHello},
	} {
		t.Run(name, func(t *testing.T) {
			rec := leave(tt.made)
			if tt.spoil != nil {
				tt.spoil(rec)
			}
			if _, err := tt.adopter.Adopt(t.Context(), rec, tt.policy); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("adopted: %v", err)
			}
			f.faults.Do(provision.FaultHello, func() error { return nil })
			if err := adopter.Remove(t.Context(), rec.ID); err != nil {
				t.Error(err)
			}
			for deadline := time.Now().Add(5 * time.Second); len(f.launcher.Running()) > 0 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
		})
	}
}
