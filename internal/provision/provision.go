// Package provision answers one question: give me a ready microVM for this
// pack and size.
//
// The one idea: however a VM comes to be, it is handed over ready, which means
// its agent has answered and given it an identity, or not at all. [Cold] boots
// one from its kernel. A faster way wraps a slower one and is a [Provisioner]
// like it.
//
// The package keeps no list of what it made; a VM belongs to whoever asked.
package provision

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
)

// EmptyProgram is a program in every language, and does nothing. Running it has a
// guest touch what programs touch.
const EmptyProgram = "\n"

// Request is the VM that is wanted.
type Request struct {
	Pack   pack.Pack
	Limits sandbox.Limits
	// BootPath, if it is set, is the one way that will do.
	BootPath sandbox.BootPath
	// Egress, if it is set, is what the VM may reach, over a network interface that
	// it has not without.
	Egress *sandbox.Egress
	// Ahead says that nobody waits for the VM yet, so that more may be done for
	// its first program.
	Ahead bool
	// Begin is called before the first side effect on the host, with the id of
	// the VM that is about to be made, so that the caller has a record of it. An
	// error ends the request. It is called again, with another id, when nothing
	// is left of the first VM and another one is made. It is not called for a VM
	// that exists already.
	Begin func(sandbox.VMID) error
}

// A Provisioner makes VMs ready for use.
type Provisioner interface {
	// Provision returns a VM whose agent has answered. On error, and when ctx
	// ends first, nothing is left of it. One that insists on a boot path which is
	// not to be had is answered with [sandbox.NoBootPath]. The caller kills the VM.
	Provision(ctx context.Context, req Request) (*VM, error)
}

// VM is a microVM with the session to its agent.
type VM struct {
	ID sandbox.VMID
	// Agent ends when the VM does.
	Agent    *agent.Session
	BootPath sandbox.BootPath

	vm      *firecracker.VM
	nic     *Interface // nil if it has no network interface
	records Records    // nil if there is no record of it
	rec     store.VM
	warming sync.WaitGroup
}

// warmUp has the agent start the interpreter ahead of the first program, which
// need not wait for it.
func (v *VM) warmUp(ctx context.Context, log *slog.Logger) {
	ctx = context.WithoutCancel(ctx)
	v.warming.Go(func() {
		// It ends with the session.
		if err := v.Agent.Warm(ctx); err != nil {
			log.Debug("interpreter was not warmed up", "vm", v.ID, "err", err)
		}
	})
}

// Claim notes that a sandbox gets the VM, if it was made ahead: from then on no
// daemon takes it for one that was never used, whatever becomes of the sandbox's
// own record. On error the VM is nobody's.
func (v *VM) Claim() error {
	if v.records == nil || !v.rec.Spare {
		return nil
	}
	v.rec.Spare = false
	return v.records.ClaimVM(v.ID)
}

// Done is closed when the VMM has ended, for whatever reason.
func (v *VM) Done() <-chan struct{} { return v.vm.Done() }

// OOMKilled tells of a VMM that has ended whether the host's OOM killer did it.
func (v *VM) OOMKilled() bool { return v.vm.OOMKilled() }

// Console is the tail of the guest's console: bytes that nobody vouches for.
func (v *VM) Console() string { return v.vm.Console() }

// Jail is what confines the VMM.
func (v *VM) Jail() sandbox.Jail { return v.vm.Jail() }

// Written is [firecracker.VM.Written].
func (v *VM) Written(snap firecracker.Snapshot) (firecracker.Pages, error) { return v.vm.Written(snap) }

// Network is the VM's network interface, nil if it has none.
func (v *VM) Network() Network { return v.nic.Network() }

// Kill ends the VM and removes everything that was made for it. It may be
// called again.
func (v *VM) Kill(ctx context.Context) error {
	_ = v.Agent.Close() // the connection dies with the VM in any case
	v.warming.Wait()
	// First, so that nothing passes any more, however long the VMM takes to end.
	unplugged := v.nic.Close()
	if err := v.vm.Kill(ctx); err != nil || v.records == nil {
		return errors.Join(unplugged, err)
	}
	return errors.Join(unplugged, v.records.DeleteVM(v.ID))
}

// Leave lets go of the VM, which goes on, and which the next daemon finds by its
// record. Until then nothing passes its network interface. Nobody may use the VM
// here any more.
func (v *VM) Leave() {
	_ = v.Agent.Close()
	v.warming.Wait()
	_ = v.nic.Close() // what of it cannot be ended ends with the daemon
	v.vm.Leave()
}
