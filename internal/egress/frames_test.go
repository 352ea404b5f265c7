package egress

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// frame is what a guest sends, as far as a test wants to choose it.
type frame struct {
	srcMAC, dstMAC net.HardwareAddr
	ethertype      uint16 // 0: that of the addresses
	vlan           int    // -1: none
	src, dst       netip.Addr
	proto          byte
	srcPort, port  uint16
	flags          byte // of TCP
	seq, ack       uint32
	icmp           byte // the type
	fragment       uint16
	options        []byte // of IPv4
	payload        []byte
}

const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for len(b) > 1 {
			sum += uint32(b[0])<<8 | uint32(b[1])
			b = b[2:]
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// transport returns what is behind the IP header.
func (f frame) transport() []byte {
	var b []byte
	at := 0 // of the checksum
	be := binary.BigEndian
	switch f.proto {
	case unix.IPPROTO_TCP:
		b = be.AppendUint16(b, f.srcPort)
		b = be.AppendUint16(b, f.port)
		b = be.AppendUint32(b, f.seq)
		b = be.AppendUint32(b, f.ack)
		b = append(b, 5<<4, f.flags, 0xff, 0xff, 0, 0, 0, 0)
		at = 16
	case unix.IPPROTO_UDP:
		b = be.AppendUint16(b, f.srcPort)
		b = be.AppendUint16(b, f.port)
		b = be.AppendUint16(b, uint16(8+len(f.payload)))
		b = append(b, 0, 0)
		at = 6
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b = append(b, f.icmp, 0, 0, 0, 0, 1, 0, 1)
		at = 2
	default:
		return f.payload
	}
	b = append(b, f.payload...)
	pseudo := append(f.src.AsSlice(), f.dst.AsSlice()...)
	pseudo = be.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, f.proto)
	if f.proto == unix.IPPROTO_ICMP {
		pseudo = nil
	}
	be.PutUint16(b[at:], checksum(pseudo, b))
	return b
}

// bytes returns the frame as the VMM would write it.
func (f frame) bytes() []byte {
	be := binary.BigEndian
	b := make([]byte, 10) // virtio_net_hdr: nothing to do
	b = append(append(b, f.dstMAC...), f.srcMAC...)
	if f.vlan >= 0 {
		b = be.AppendUint16(b, 0x8100)
		b = be.AppendUint16(b, uint16(f.vlan))
	}
	body := f.transport()
	switch {
	case f.ethertype != 0:
		return append(be.AppendUint16(b, f.ethertype), f.payload...)
	case f.src.Is4():
		b = be.AppendUint16(b, 0x0800)
		ip := []byte{0x45 + byte(len(f.options)/4), 0}
		ip = be.AppendUint16(ip, uint16(20+len(f.options)+len(body)))
		ip = be.AppendUint16(ip, 7)
		ip = be.AppendUint16(ip, f.fragment)
		ip = append(ip, 64, f.proto, 0, 0)
		ip = append(append(append(ip, f.src.AsSlice()...), f.dst.AsSlice()...), f.options...)
		be.PutUint16(ip[10:], checksum(ip))
		return append(append(b, ip...), body...)
	default:
		b = be.AppendUint16(b, 0x86dd)
		ip := []byte{0x60, 0, 0, 0}
		ip = be.AppendUint16(ip, uint16(len(body)))
		ip = append(ip, f.proto, 64)
		return append(append(append(append(b, ip...), f.src.AsSlice()...), f.dst.AsSlice()...), body...)
	}
}

// heard says what a frame to the guest is, and from which address.
func heard(b []byte) (text string, ip []byte) {
	if len(b) < 10+14+20 {
		return "short", nil
	}
	kind, ip := binary.BigEndian.Uint16(b[22:]), b[24:]
	var (
		proto byte
		src   netip.Addr
		body  []byte
	)
	switch kind {
	case 0x0800:
		proto, body = ip[9], ip[int(ip[0]&15)*4:]
		src = netip.AddrFrom4([4]byte(ip[12:16]))
	case 0x86dd:
		proto, body = ip[6], ip[40:]
		src = netip.AddrFrom16([16]byte(ip[8:24]))
	default:
		return fmt.Sprintf("ethertype %04x", kind), ip
	}
	switch proto {
	case unix.IPPROTO_TCP:
		switch flags := body[13]; {
		case flags&tcpRST != 0:
			return fmt.Sprintf("reset from %s", src), body
		case flags&(tcpSYN|tcpACK) == tcpSYN|tcpACK:
			return fmt.Sprintf("open from %s", src), body
		default:
			return fmt.Sprintf("tcp %02x from %s", flags, src), body
		}
	case unix.IPPROTO_UDP:
		return fmt.Sprintf("udp %q from %s", body[8:], src), body
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return fmt.Sprintf("icmp %d/%d", body[0], body[1]), body
	}
	return fmt.Sprintf("proto %d from %s", proto, src), body
}
