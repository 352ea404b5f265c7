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
var errNoNetworks = sandbox.NoEgress("this emberd gives none; start it with --egress, or create the sandbox without egress")

// errNoInterface is what a client is told of an interface that could not be made.
var errNoInterface = sandbox.NoEgress("emberd's log says why, and `emberctl doctor` what the host lacks")

// CheckEgress returns an error if networks cannot give what policy, if it is set,
// asks for.
func CheckEgress(networks Networks, policy *sandbox.Egress) error {
	if policy != nil && networks == nil {
		return errNoNetworks
	}
	return nil
}

// Line is the network interface of a microVM that is about to be made. One that is
// nil is none.
type Line struct {
	networks Networks
	id       sandbox.VMID
	policy   sandbox.Egress
	network  Network
	close    sync.Once
}

// NewLine returns the interface that the microVM called id is to have, nil if
// policy is. [CheckEgress] has passed.
func NewLine(networks Networks, id sandbox.VMID, policy *sandbox.Egress) *Line {
	if policy == nil {
		return nil
	}
	return &Line{networks: networks, id: id, policy: *policy}
}

// Interface is how a VM is booted with it.
func (l *Line) Interface() *firecracker.Interface {
	if l == nil {
		return nil
	}
	return &firecracker.Interface{TAP: egress.TAP, Attach: l.attach}
}

// Attach is how a VM is restored with it.
func (l *Line) Attach() firecracker.Attach {
	if l == nil {
		return nil
	}
	return l.attach
}

func (l *Line) attach(ctx context.Context, jail sandbox.Jail) error {
	return l.obtain(ctx, jail, Networks.Attach)
}

// adopt takes over what an earlier daemon made.
func (l *Line) adopt(ctx context.Context, jail sandbox.Jail) error {
	if l == nil {
		return nil
	}
	return l.obtain(ctx, jail, Networks.Adopt)
}

// obtain has networks make the interface, or find it.
func (l *Line) obtain(ctx context.Context, jail sandbox.Jail, how func(Networks, context.Context, egress.VMM, sandbox.Egress) (Network, error)) error {
	network, err := how(l.networks, ctx, egress.VMM{ID: l.id, PID: jail.PID, UID: jail.UID}, l.policy)
	if _, told := errors.AsType[*sandbox.Error](err); err != nil && !told && ctx.Err() == nil {
		err = errNoInterface.Because(err)
	}
	if err == nil {
		l.network = network
	}
	return err
}

// guest is what a VM is armed with.
func (l *Line) guest() *agent.Network {
	if l == nil {
		return nil
	}
	n := agent.Network(l.network.Guest())
	return &n
}

// Network is what was made, nil if nothing was.
func (l *Line) Network() Network {
	if l == nil {
		return nil
	}
	return l.network
}

// Close ends what goes on in the daemon for the interface. What could not be ended
// is told once.
func (l *Line) Close() (err error) {
	if l == nil || l.network == nil {
		return nil
	}
	l.close.Do(func() {
		if err = l.network.Close(); err != nil {
			err = fmt.Errorf("network interface of %s: %w", l.id, err)
		}
	})
	return err
}
