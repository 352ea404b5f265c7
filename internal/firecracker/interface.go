package firecracker

import (
	"context"
	"fmt"
	"net/http"

	"github.com/emberd/emberd/internal/sandbox"
)

// Fault points of a VM's network interface, in [Boot] and [Shell.Restore].
const (
	FaultAttach    = "firecracker.attach"
	FaultInterface = "firecracker.interface"
)

// Fault points that a test can break, beside the others, where a VM has an
// interface.
var (
	InterfaceFaultPoints        = []string{FaultAttach, FaultInterface}
	RestoreInterfaceFaultPoints = []string{FaultAttach}
)

// Interface is the network interface of a VM.
type Interface struct {
	// TAP is the name of the device in the VMM's network namespace. A snapshot
	// holds it.
	TAP string
	// Attach makes that device, for the user of the VMM whose jail it is given. It
	// is called once, before there is a VM. What it made ends with the VMM, or is the
	// caller's to undo.
	Attach Attach
}

// Attach is [Interface.Attach].
type Attach func(context.Context, sandbox.Jail) error

// interfaceID names the one interface, and interfaceMAC is its address until the
// guest is armed with another. No clone of a snapshot keeps it.
const (
	interfaceID  = "eth0"
	interfaceMAC = "02:65:6d:00:00:02"
)

// flood is what a guest may send and receive at most, whatever it may reach: a
// gigabit and 20,000 frames a second. A frame holds up to 64 KiB where TCP's
// segmentation is left to the interface, so a flow comes to the first limit; small
// frames, each of which costs the host as much as a large one, come to the second.
// Firecracker looks at a bucket that was emptied every 100 ms, so one holds what
// may go through in 250. A snapshot holds them: templates of before a change keep
// theirs unless their format is raised.
var flood = rateLimiter{
	Bytes:  tokenBucket{Size: 1_000_000_000 / 8 / 4, RefillMs: 250},
	Frames: tokenBucket{Size: 20_000 / 4, RefillMs: 250},
}

// step makes the device.
func (a Attach) step(p Process) step {
	return step{FaultAttach, func(ctx context.Context, _ *apiClient) error {
		if err := a(ctx, p.Jail()); err != nil {
			return fmt.Errorf("network interface: %w", err)
		}
		return nil
	}}
}

// steps make the device, and give the VM the interface.
func (i *Interface) steps(p Process) []step {
	if i == nil {
		return nil
	}
	return []step{
		i.Attach.step(p),
		call(FaultInterface, http.MethodPut, "/network-interfaces/"+interfaceID, networkInterface{
			ID: interfaceID, TAP: i.TAP, MAC: interfaceMAC, Receive: flood, Send: flood,
		}),
	}
}
