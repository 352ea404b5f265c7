package provision

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
)

// Networks gives microVMs network interfaces.
type Networks interface {
	// Attach makes the interface of a VMM that has no VM yet, with the rules of
	// policy in force. On error nothing is left of it.
	Attach(ctx context.Context, vmm egress.VMM, policy sandbox.Egress) (Network, error)
	// Adopt takes over the interface that an earlier daemon made, and has policy in
	// force there.
	Adopt(ctx context.Context, vmm egress.VMM, policy sandbox.Egress) (Network, error)
}

// Network is the interface of one microVM. Its methods may be called by any number
// of goroutines.
type Network interface {
	// Guest is how the guest sees it.
	Guest() egress.Guest
	// Set has another policy in force when it returns. After an error it is the old
	// one or the new one, and nothing passes that neither allows.
	Set(ctx context.Context, policy sandbox.Egress) error
	// Denials is what was refused so far.
	Denials() []sandbox.EgressDenial
	// Close ends everything that goes on in the daemon for it. It is called once.
	// What is in the VMM's namespace ends with the VMM.
	Close() error
}

// errNoNetworks is the answer of an emberd that gives no interfaces.
var errNoNetworks = sandbox.EgressUnavailable("this emberd gives none; start it with --egress, or create the sandbox without egress")

// errNoInterface is what a client is told of an interface that could not be made.
var errNoInterface = sandbox.EgressUnavailable("emberd's log says why, and `emberctl doctor` what the host lacks")

// CheckEgress returns an error if networks cannot give what policy, if it is set,
// asks for.
func CheckEgress(networks Networks, policy *sandbox.Egress) error {
	if policy != nil && networks == nil {
		return errNoNetworks
	}
	return nil
}

// Interface is the network interface of a microVM, from before there is the microVM.
// One that is nil is none.
type Interface struct {
	networks Networks
	id       sandbox.VMID
	policy   sandbox.Egress
	network  Network
	close    sync.Once
}

// NewInterface returns the interface that the microVM called id is to have, nil if
// policy is. [CheckEgress] has passed.
func NewInterface(networks Networks, id sandbox.VMID, policy *sandbox.Egress) *Interface {
	if policy == nil {
		return nil
	}
	return &Interface{networks: networks, id: id, policy: *policy}
}

// OfVM is how a VM is booted with it.
func (i *Interface) OfVM() *firecracker.Interface {
	if i == nil {
		return nil
	}
	return &firecracker.Interface{TAP: egress.TAP, Attach: i.attach}
}

// Attach is how a VM is restored with it.
func (i *Interface) Attach() firecracker.Attach {
	if i == nil {
		return nil
	}
	return i.attach
}

func (i *Interface) attach(ctx context.Context, jail sandbox.Jail) error {
	return i.obtain(ctx, jail, Networks.Attach)
}

// adopt takes over what an earlier daemon made.
func (i *Interface) adopt(ctx context.Context, jail sandbox.Jail) error {
	if i == nil {
		return nil
	}
	return i.obtain(ctx, jail, Networks.Adopt)
}

// obtain has networks make the interface, or find it.
func (i *Interface) obtain(ctx context.Context, jail sandbox.Jail, how func(Networks, context.Context, egress.VMM, sandbox.Egress) (Network, error)) error {
	network, err := how(i.networks, ctx, egress.VMM{ID: i.id, PID: jail.PID, UID: jail.UID}, i.policy)
	if _, told := errors.AsType[*sandbox.Error](err); err != nil && !told && ctx.Err() == nil {
		err = errNoInterface.Because(err)
	}
	if err == nil {
		i.network = network
	}
	return err
}

// guest is what a VM is armed with.
func (i *Interface) guest() *agent.Network {
	if i == nil {
		return nil
	}
	n := agent.Network(i.network.Guest())
	return &n
}

// Network is what was made, nil if nothing was.
func (i *Interface) Network() Network {
	if i == nil {
		return nil
	}
	return i.network
}

// Close ends what goes on in the daemon for the interface. What could not be ended
// is told once.
func (i *Interface) Close() (err error) {
	if i == nil || i.network == nil {
		return nil
	}
	i.close.Do(func() {
		if err = i.network.Close(); err != nil {
			err = fmt.Errorf("network interface of %s: %w", i.id, err)
		}
	})
	return err
}
