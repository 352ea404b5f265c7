package provision

import (
	"context"

	"github.com/emberd/emberd/internal/egress"
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
	// Close ends everything that goes on in the daemon for it. What is in the
	// VMM's namespace ends with the VMM.
	Close() error
}

// Network is the VM's interface, nil if it has none.
func (v *VM) Network() Network { return v.network }
