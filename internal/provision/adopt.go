package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
)

// FaultAdopt is the fault point of [Adopter.Adopt].
const FaultAdopt = "provision.adopt"

// Adopter takes over the VMs that an earlier daemon left.
type Adopter struct {
	Host
	VMMs firecracker.Adopter
	// Networks may be nil; then no VM that has a network interface is adopted.
	Networks Networks
	// Before is what there was before this daemon made anything.
	Before []sandbox.VMID
}

// Left names the VMs of which anything was left when this daemon began.
func (a Adopter) Left() []sandbox.VMID { return a.Before }

// Adopt returns the VM of a record, with a new session to its agent, which has
// to be the one that was armed when the record was written. What passes its network
// interface is what policy says, which is nil where there is none; where there are no
// Networks any more it keeps the interface, and nothing passes. After an error the
// VM is to be removed.
func (a Adopter) Adopt(ctx context.Context, rec store.VM, policy *sandbox.Egress) (*VM, error) {
	if err := a.Faults.Hit(FaultAdopt); err != nil {
		return nil, err
	}
	if rec.Network != (policy != nil) {
		return nil, fmt.Errorf("that it has a network interface is %v, and that there is a policy for it %v", rec.Network, policy != nil)
	}
	if a.Networks == nil {
		policy = nil // nothing passes where nobody relays it
	}
	fc, err := firecracker.Adopt(ctx, a.VMMs, rec.ID, rec.Handle)
	if err != nil {
		return nil, err
	}
	nic := NewInterface(a.Networks, rec.ID, policy)
	if err := nic.adopt(ctx, fc.Jail()); err != nil {
		return nil, errors.Join(err, fc.Kill(ctx))
	}
	session, err := Hello(ctx, fc, a.Log, a.Faults)
	if err != nil {
		return nil, errors.Join(a.lastWords(fmt.Errorf("agent: %w", err), fc), nic.Close(), fc.Kill(ctx))
	}
	vm := &VM{ID: rec.ID, Agent: session, BootPath: rec.BootPath, vm: fc, nic: nic, records: a.Records, rec: rec}
	if err := session.Prove(ctx, rec.Secret); err != nil {
		return nil, errors.Join(err, vm.Kill(ctx))
	}
	return vm, nil
}

// Remove ends a VM that was not adopted and removes everything that was made for
// it, its record last. That there is nothing is no error.
func (a Adopter) Remove(ctx context.Context, id sandbox.VMID) error {
	if err := a.VMMs.Remove(ctx, id); err != nil {
		return err
	}
	return a.Records.DeleteVM(id)
}
