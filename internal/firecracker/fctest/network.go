package fctest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// tapFile stands for a TAP device, at a path of the VMM's, and armedFile holds the
// network that the guest was armed with.
func tapFile(name string) string { return "/tap-" + name }

const armedFile = "/armed"

// arm notes the network that the guest is armed with.
func (m machine) arm(id *agentv1.Arm) error {
	n := id.GetNetwork()
	if n == nil {
		return nil
	}
	if m.TAP == "" {
		return errors.New("configure the network: eth0: no such device")
	}
	b, err := proto.Marshal(n)
	if err != nil {
		return err
	}
	return os.WriteFile(jailPath(armedFile), b, 0o600)
}

// Armed is the network that the guest of a fake was armed with, nil if it was
// with none.
func (l *Launcher) Armed(id sandbox.VMID) (*agentv1.Network, error) {
	b, err := os.ReadFile(filepath.Join(l.Dir, string(id), armedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n := new(agentv1.Network)
	return n, proto.Unmarshal(b, n)
}

// Networks gives fakes network interfaces that nothing goes through. It is a
// [provision.Networks].
type Networks struct {
	Launcher *Launcher

	mu   sync.Mutex
	err  error
	open map[sandbox.VMID]*Network
}

// Fail has every interface that is asked for refused with err, until that is nil.
func (n *Networks) Fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

// Open are the interfaces that were not closed.
func (n *Networks) Open() map[sandbox.VMID]*Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.open)
}

// Attach makes what a fake takes for its TAP.
func (n *Networks) Attach(_ context.Context, vmm egress.VMM, policy sandbox.Egress) (provision.Network, error) {
	return n.add(vmm, policy, func(tap string) error {
		f, err := os.OpenFile(tap, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// Adopt finds what a fake takes for its TAP.
func (n *Networks) Adopt(_ context.Context, vmm egress.VMM, policy sandbox.Egress) (provision.Network, error) {
	return n.add(vmm, policy, func(tap string) error {
		_, err := os.Stat(tap)
		return err
	})
}

func (n *Networks) add(vmm egress.VMM, policy sandbox.Egress, prepare func(tap string) error) (provision.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil, n.err
	}
	if n.open[vmm.ID] != nil {
		return nil, fmt.Errorf("%s has an interface already", vmm.ID)
	}
	if err := prepare(filepath.Join(n.Launcher.Dir, string(vmm.ID), tapFile(egress.TAP))); err != nil {
		return nil, err
	}
	if n.open == nil {
		n.open = make(map[sandbox.VMID]*Network)
	}
	network := &Network{VMM: vmm, all: n, policy: policy}
	n.open[vmm.ID] = network
	return network, nil
}

// Network is one of [Networks].
type Network struct {
	VMM egress.VMM

	all     *Networks
	mu      sync.Mutex
	policy  sandbox.Egress
	denials []sandbox.EgressDenial
}

// Guest is how the guest sees it: each has an address of its own.
func (n *Network) Guest() egress.Guest {
	var last byte
	for _, c := range n.VMM.ID {
		last = last*31 + byte(c)
	}
	return egress.Guest{
		MAC: net.HardwareAddr{2, 0, 0, 0, 1, last}, GatewayMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Addr: netip.AddrFrom4([4]byte{100, 65, 0, last}), Gateway: netip.MustParseAddr("100.64.0.1"),
	}
}

// Set has another policy in force.
func (n *Network) Set(_ context.Context, policy sandbox.Egress) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.policy = policy
	return nil
}

// Policy is what is in force.
func (n *Network) Policy() sandbox.Egress {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.policy
}

// Deny adds to what was refused.
func (n *Network) Deny(d sandbox.EgressDenial) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.denials = append(n.denials, d)
}

// Denials is what was refused.
func (n *Network) Denials() []sandbox.EgressDenial {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]sandbox.EgressDenial(nil), n.denials...)
}

// Close takes it off the list of those that are open.
func (n *Network) Close() error {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	if n.all.open[n.VMM.ID] != n {
		return fmt.Errorf("the interface of %s was closed already", n.VMM.ID)
	}
	delete(n.all.open, n.VMM.ID)
	return nil
}
