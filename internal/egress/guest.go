package egress

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/emberd/emberd/internal/sandbox"
)

// The addresses inside of each namespace. Nobody outside sees them, and both
// ranges are among those that no sandbox reaches.
var (
	gateway    = netip.MustParseAddr("100.64.0.1")
	gateway6   = netip.MustParseAddr("fd00:656d::1")
	gatewayMAC = net.HardwareAddr{0x02, 'e', 'm', 0, 0, 1}
	guests     = netip.MustParsePrefix("100.64.0.0/10")
	guests6    = netip.MustParsePrefix("fd00:656d::/64")
)

// GuestOf is how the guest of a microVM sees its interface. It follows from the
// id, so that clones of one snapshot differ and a later daemon finds the same.
func GuestOf(id sandbox.VMID) Guest {
	sum := sha256.Sum256([]byte(id))
	g := Guest{
		MAC:     append(net.HardwareAddr{0x02}, sum[:5]...),
		Gateway: gateway, Gateway6: gateway6, GatewayMAC: gatewayMAC,
	}
	if g.MAC[1] == gatewayMAC[1] {
		g.MAC[1]++
	}

	// Neither the range itself, nor the gateway, nor the broadcast address.
	host := binary.BigEndian.Uint32(sum[8:])%(1<<(32-guests.Bits())-3) + 2
	four := guests.Addr().As4()
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(four[:])+host)
	g.Addr = netip.AddrFrom4(four)

	six := guests6.Addr().As16()
	copy(six[8:], sum[16:24])
	six[8] |= 0x80 // so it is none of the lowest, where the gateway is
	g.Addr6 = netip.AddrFrom16(six)
	return g
}
