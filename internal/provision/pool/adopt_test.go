package pool

import (
	"testing"
	"time"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
)

// leave makes VMs for the next pool, with their records, and the adopter of them.
func (f *fixture) leave(n int) (provision.Adopter, []store.VM) {
	f.t.Helper()
	records, err := store.Open(paths.Run(f.t.TempDir()))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = records.Close() })
	cold := f.cold
	cold.Records = records
	source := provision.NewCold(cold)
	for range n {
		vm, err := source.Provision(f.t.Context(), provision.Request{
			Pack: f.pack("shell"), Limits: f.limits, Begin: func(sandbox.VMID) error { return nil },
		})
		if err != nil {
			f.t.Fatal(err)
		}
		vm.Leave()
	}
	recs, err := records.LoadVMs()
	if err != nil || len(recs) != n {
		f.t.Fatalf("%d records, %v", len(recs), err)
	}
	return provision.Adopter{Host: provision.Host{Records: records, Log: cold.Log}, VMMs: f.launcher}, recs
}

func TestAdoptedVMsAreTakenFirst(t *testing.T) {
	f := newFixture(t, Bounds{Min: 0, Max: 2})
	adopter, recs := f.leave(3)
	var ids []sandbox.VMID
	for i, rec := range recs {
		if wants := f.Wants(rec); wants != (i < 2) {
			t.Errorf("VM %d is wanted: %v", i, wants)
		}
		vm, err := adopter.Adopt(t.Context(), rec, nil)
		if err != nil {
			t.Fatal(err)
		}
		if adopted := f.Adopt(rec, vm); adopted != (i < 2) {
			t.Errorf("VM %d was adopted: %v", i, adopted)
		}
		if i == 2 {
			if err := vm.Kill(t.Context()); err != nil {
				t.Error(err)
			}
			continue
		}
		ids = append(ids, vm.ID)
	}
	f.await("two VMs", ready(2))
	for range ids {
		vm := f.get(f.request())
		if vm.ID != ids[0] && vm.ID != ids[1] {
			t.Errorf("got %s, want one of %v", vm.ID, ids)
		}
	}
}

func TestVMsOfAnotherMakeAreNotWanted(t *testing.T) {
	f := newFixture(t, Bounds{Min: 0, Max: 2})
	_, recs := f.leave(1)
	if !f.Wants(recs[0]) {
		t.Fatal("one that is whole is not wanted")
	}
	for name, change := range map[string]func(*store.VM){
		"pack":    func(r *store.VM) { r.Pack = "python" },
		"image":   func(r *store.VM) { r.Rootfs = "another" },
		"version": func(r *store.VM) { r.Emberd = "v0.0.1" },
		"size":    func(r *store.VM) { r.Limits.MemoryMiB++ },
		"disk":    func(r *store.VM) { r.Limits.DiskMiB++ },
		"pids":    func(r *store.VM) { r.Limits.PIDs++ },
		"network": func(r *store.VM) { r.Network = true },
	} {
		other := recs[0]
		change(&other)
		if f.Wants(other) {
			t.Errorf("one of another %s is wanted", name)
		}
	}
	f.removeLeft()
}

func TestLeaveLetsVMsGoOn(t *testing.T) {
	f := newFixture(t, Bounds{Min: 2, Max: 2})
	f.await("two VMs", ready(2))
	for range 2 {
		f.Leave()
	}
	time.Sleep(50 * time.Millisecond)
	if n := len(f.launcher.Running()); n != 2 {
		t.Errorf("%d VMMs run on", n)
	}
	f.removeLeft()
}

// removeLeft ends the VMs that nobody goes on with.
func (f *fixture) removeLeft() {
	f.t.Helper()
	for _, id := range f.launcher.Left() {
		if err := f.launcher.Remove(f.t.Context(), id); err != nil {
			f.t.Error(err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); len(f.launcher.Running()) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}
