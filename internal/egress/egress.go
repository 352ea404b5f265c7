// Package egress gives a microVM a network interface, and decides what gets
// through it.
//
// The one idea: the network namespace that a VMM is in anyway is the whole of the
// guest's world. Its TAP is the only interface there and nothing is routed out of
// it; the only bridge to the outside is this daemon, whose sockets inside of the
// namespace take what nftables lets through, and which connects on the guest's
// behalf from the host's own namespace. So nothing on the host is changed: no
// route, no rule, no name that could be left behind; the namespace ends with its
// VMM. And nothing passes while no daemon runs.
//
// What may pass is decided twice. The kernel lets packets through to addresses
// that the policy names, or that the resolver has answered for a name of the
// policy, for as long as the answer holds; everything else is refused and counted
// there. The relay then checks each connection again, and of those to ports 80 and
// 443 that their first bytes name a host that is allowed at that address.
//
// The invariant: nothing passes that the policy of that moment does not allow.
// Until the rules are in force the interface does not exist, and they stay as they
// are without a daemon.
//
// The package does not know what sandboxes are, and starts no VMM.
package egress

import (
	"net"
	"net/netip"

	"github.com/emberd/emberd/internal/sandbox"
)

// TAP is the name of the interface in the VMM's network namespace, the same for
// each, so that a snapshot of one VM fits all.
const TAP = "tap0"

// VMM is the process whose network namespace the interface is made in.
type VMM struct {
	ID       sandbox.VMID
	PID, UID int
}

// Guest is how the guest sees its interface. It follows from the microVM's id; the
// gateway, which is also the guest's resolver, is the same for all.
type Guest struct {
	MAC        net.HardwareAddr
	Addr       netip.Addr
	Addr6      netip.Addr
	Gateway    netip.Addr
	Gateway6   netip.Addr
	GatewayMAC net.HardwareAddr
}
