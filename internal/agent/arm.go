package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// entropyBytes is how much randomness a VM is given; its kernel's generator
// holds 32 bytes.
const entropyBytes = 64

// Identity makes a VM one of its own. What it does not name, random ids and the
// time, is made up when it is sent.
type Identity struct {
	Hostname string
	// DiskMiB is how much may be written to the root filesystem, and PIDs how
	// many processes and threads programs may have together.
	DiskMiB, PIDs int
	// Secret, from [NewSecret], is what the agent proves to [Session.Prove] that
	// it knows; none if it never has to.
	Secret []byte
	// Network is how the VM uses its network interface, nil if it has none.
	Network *Network
}

// Network is how a VM uses its network interface. The gateway is all that there is
// at the other end, and resolves names. Without IPv6 its two addresses are the zero
// value.
type Network struct {
	MAC        net.HardwareAddr
	Addr       netip.Addr
	Addr6      netip.Addr
	Gateway    netip.Addr
	Gateway6   netip.Addr
	GatewayMAC net.HardwareAddr
}

func (n *Network) message() *agentv1.Network {
	if n == nil {
		return nil
	}
	return &agentv1.Network{
		Mac: n.MAC, GatewayMac: n.GatewayMAC,
		Address: n.Addr.AsSlice(), Gateway: n.Gateway.AsSlice(),
		Address6: n.Addr6.AsSlice(), Gateway6: n.Gateway6.AsSlice(),
	}
}

// Arm gives the VM its identity, fresh randomness and the time of this moment.
// It comes before any program; after an error the VM must not be used.
func (s *Session) Arm(ctx context.Context, id Identity) error {
	msg := &agentv1.Arm{
		Entropy:     random(entropyBytes),
		ClockUnixNs: time.Now().UnixNano(),
		Hostname:    id.Hostname,
		MachineId:   random(16),
		BootId:      random(16),
		DiskMib:     uint32(id.DiskMiB),
		Pids:        uint32(id.PIDs),
		Secret:      id.Secret,
		Network:     id.Network.message(),
	}
	if err := s.order(ctx, &agentv1.Request{Op: &agentv1.Request_Arm{Arm: msg}}); err != nil {
		return fmt.Errorf("arm the VM: %w", err)
	}
	return nil
}

// Warm has the agent start the pack's interpreter ahead of programs and returns
// when it stands. Where there is nothing to start, it returns at once.
func (s *Session) Warm(ctx context.Context) error {
	if err := s.order(ctx, &agentv1.Request{Op: &agentv1.Request_Warm{Warm: &agentv1.Warm{}}}); err != nil {
		return fmt.Errorf("warm up the interpreter: %w", err)
	}
	return nil
}

// order carries out an operation that has no result.
func (s *Session) order(ctx context.Context, req *agentv1.Request) error {
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return err
	}
	return ask(ctx, stream, req, func(stream net.Conn) error { return readDone(stream) })
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // documented never to fail
	return b
}
