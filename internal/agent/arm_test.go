package agent_test

import (
	"net"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
)

// The guest is told of its network as the host knows it, and of none if it has
// none.
func TestNetworkOfAnIdentity(t *testing.T) {
	mac, gatewayMAC := net.HardwareAddr{2, 1, 2, 3, 4, 5}, net.HardwareAddr{2, 0, 0, 0, 0, 1}
	addr, gateway := netip.MustParseAddr("100.65.1.2"), netip.MustParseAddr("100.64.0.1")
	addr6, gateway6 := netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00::1")
	for _, tt := range []struct {
		name string
		had  *agent.Network
		want *agentv1.Network
	}{
		{"none", nil, nil},
		{
			"both", &agent.Network{MAC: mac, Addr: addr, Addr6: addr6, Gateway: gateway, Gateway6: gateway6, GatewayMAC: gatewayMAC},
			&agentv1.Network{
				Mac: mac, GatewayMac: gatewayMAC, Address: []byte{100, 65, 1, 2}, Gateway: []byte{100, 64, 0, 1},
				Address6: addr6.AsSlice(), Gateway6: gateway6.AsSlice(),
			},
		},
		{
			"no IPv6", &agent.Network{MAC: mac, Addr: addr, Gateway: gateway, GatewayMAC: gatewayMAC},
			&agentv1.Network{Mac: mac, GatewayMac: gatewayMAC, Address: []byte{100, 65, 1, 2}, Gateway: []byte{100, 64, 0, 1}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got agentv1.Arm
			s := open(t, agenttest.Config{Arm: func(a *agentv1.Arm) error {
				proto.Merge(&got, a)
				return nil
			}})
			if err := s.Arm(t.Context(), agent.Identity{Hostname: "vm", DiskMiB: 1, PIDs: 1, Network: tt.had}); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got.GetNetwork(), tt.want) {
				t.Errorf("told of %v, want %v", got.GetNetwork(), tt.want)
			}
		})
	}
}
