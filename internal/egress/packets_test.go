package egress

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

// What a guest sends reaches the relay only if the policy says so, and nothing
// else takes it.
func TestRealPackets(t *testing.T) {
	p := policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{
		rangeRule("203.0.113.0/24", sandbox.TCP, 443, 5432), rangeRule("203.0.113.128/25", sandbox.TCP, 443),
		rangeRule("198.51.100.0/24", sandbox.UDP), rangeRule("2001:db8:1::/48", sandbox.TCP, 443),
		{Host: "api.example.org", Ports: []uint16{443}},
	}})
	b := attach(t, true, p)
	api := netip.MustParseAddr("192.0.2.10")
	if err := b.open(api, p.Allow[len(p.Allow)-1:], time.Minute); err != nil {
		t.Fatal(err)
	}
	go acceptAll(b.s.tcp)
	go answerAll(b)
	const tcp, udp, icmp, icmp6 = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	mac := func(m ...byte) func(*frame) { return func(f *frame) { f.srcMAC = m } }
	tests := []struct {
		name   string
		proto  byte
		dst    string
		port   uint16
		change func(*frame)
		want   string
		denied string // without the count
		forged bool
	}{
		{"a range", tcp, "203.0.113.9", 443, nil, "open from 203.0.113.9", "", false},
		{"a range in two rules", tcp, "203.0.113.200", 443, nil, "open from 203.0.113.200", "", false},
		{"another port of it", tcp, "203.0.113.9", 5432, nil, "open from 203.0.113.9", "", false},
		{"a port not of it", tcp, "203.0.113.9", 22, nil, "reset from 203.0.113.9", "no_rule 203.0.113.9 22 tcp", false},
		{"beside the range", tcp, "203.0.114.0", 443, nil, "reset from 203.0.114.0", "no_rule 203.0.114.0 443 tcp", false},
		{"a protocol not of it", udp, "203.0.113.9", 443, nil, "icmp 3/13", "no_rule 203.0.113.9 443 udp", false},
		{"any port of a range", udp, "198.51.100.7", 9, nil, `udp "198.51.100.7:9" from 198.51.100.7`, "", false},
		{"the protocol not of it", tcp, "198.51.100.7", 9, nil, "reset from 198.51.100.7", "no_rule 198.51.100.7 9 tcp", false},
		{"a name", tcp, "192.0.2.10", 443, nil, "open from 192.0.2.10", "", false},
		{"a port not of the name", tcp, "192.0.2.10", 80, nil, "reset from 192.0.2.10", "no_rule 192.0.2.10 80 tcp", false},
		{"the address beside", tcp, "192.0.2.11", 443, nil, "reset from 192.0.2.11", "no_rule 192.0.2.11 443 tcp", false},
		{"the resolver", udp, "100.64.0.1", 53, nil, `udp "dns" from 100.64.0.1`, "", false},
		{"the resolver by TCP", tcp, "100.64.0.1", 53, nil, "open from 100.64.0.1", "", false},
		{"another resolver", udp, "9.9.9.9", 53, nil, "icmp 3/13", "no_rule 9.9.9.9 53 udp", false},
		{"DNS over TLS", tcp, "9.9.9.9", 853, nil, "reset from 9.9.9.9", "no_rule 9.9.9.9 853 tcp", false},
		{"the gateway", tcp, "100.64.0.1", 22, nil, "reset from 100.64.0.1", "forbidden_address 100.64.0.1 22 tcp", false},
		{"the relay's own port", tcp, "100.64.0.1", relayPort, nil, "reset from 100.64.0.1", "forbidden_address 100.64.0.1 1024 tcp", false},
		{"the relay's own port elsewhere", tcp, "9.9.9.9", relayPort, nil, "reset from 9.9.9.9", "no_rule 9.9.9.9 1024 tcp", false},
		{"the relay itself", tcp, "127.0.0.1", relayPort, nil, "any", "forbidden_address 127.0.0.1 1024 tcp", false},
		{"metadata", tcp, "169.254.169.254", 80, nil, "reset from 169.254.169.254", "forbidden_address 169.254.169.254 80 tcp", false},
		{"a private address", tcp, "10.0.0.1", 443, nil, "reset from 10.0.0.1", "forbidden_address 10.0.0.1 443 tcp", false},
		{"another guest", tcp, "100.64.0.9", 443, nil, "reset from 100.64.0.9", "forbidden_address 100.64.0.9 443 tcp", false},
		{"itself", tcp, "GUEST", 443, nil, "any", "forbidden_address GUEST 443 tcp", false},
		{"broadcast", udp, "255.255.255.255", 67, nil, "any", "forbidden_address 255.255.255.255 67 udp", false},
		{"multicast", udp, "224.0.0.251", 5353, func(f *frame) { f.dstMAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb} }, "nothing", "forbidden_address 224.0.0.251 5353 udp", false},
		{"an allowed address by broadcast", udp, "198.51.100.7", 9, func(f *frame) { f.dstMAC = net.HardwareAddr{255, 255, 255, 255, 255, 255} }, "any", "no_rule 198.51.100.7 9 udp", false},
		{"ping", icmp, "203.0.113.9", 0, nil, "icmp 3/13", "no_rule 203.0.113.9 0 icmp", false},
		{"ping of the gateway", icmp, "100.64.0.1", 0, nil, "icmp 3/13", "forbidden_address 100.64.0.1 0 icmp", false},
		{"an answer to nothing", icmp, "203.0.113.9", 0, func(f *frame) { f.icmp = 0 }, "nothing", "", false},
		{"another protocol", 47, "203.0.113.9", 0, func(f *frame) { f.payload = make([]byte, 20) }, "icmp 3/13", "no_rule 203.0.113.9 0 47", false},
		{"what goes on from nothing", tcp, "203.0.114.9", 443, func(f *frame) { f.flags = tcpACK }, "reset from 203.0.114.9", "", false},
		{"wrong MAC", tcp, "203.0.113.9", 443, mac(2, 1, 2, 3, 4, 5), "nothing", "", true},
		{"the gateway's MAC", tcp, "203.0.113.9", 443, mac(gatewayMAC...), "nothing", "", true},
		{"wrong source", tcp, "203.0.113.9", 443, func(f *frame) { f.src = netip.MustParseAddr("100.64.0.77") }, "nothing", "", true},
		{"the gateway as source", tcp, "203.0.113.9", 443, func(f *frame) { f.src = gateway }, "nothing", "", true},
		{"a destination as source", tcp, "203.0.113.9", 443, func(f *frame) { f.src = f.dst }, "nothing", "", true},
		{"first fragment", udp, "198.51.100.7", 9, func(f *frame) { f.fragment = 0x2000 }, "nothing", "", true},
		{"last fragment", udp, "198.51.100.7", 9, func(f *frame) { f.fragment = 3 }, "nothing", "", true},
		{"source route", tcp, "203.0.113.9", 443, func(f *frame) { f.options = []byte{0x83, 7, 4, 10, 0, 0, 1, 0} }, "nothing", "", true},
		{"not for the gateway's MAC", tcp, "203.0.113.9", 443, func(f *frame) { f.dstMAC = net.HardwareAddr{2, 9, 9, 9, 9, 9} }, "nothing", "", false},
		{"VLAN", tcp, "203.0.113.9", 443, func(f *frame) { f.vlan = 5 }, "nothing", "", false},
		{"VLAN 0 is none", tcp, "203.0.113.9", 22, func(f *frame) { f.vlan = 0 }, "reset from 203.0.113.9", "no_rule 203.0.113.9 22 tcp", false},
		{"ARP", 0, "203.0.113.9", 0, func(f *frame) { f.ethertype, f.payload = 0x0806, arpRequest(b.guest) }, "nothing", "", false},
		{"LLDP", 0, "203.0.113.9", 0, func(f *frame) { f.ethertype, f.payload = 0x88cc, make([]byte, 60) }, "nothing", "", false},
		{"an IPv6 range", tcp, "2001:db8:1::9", 443, nil, "open from 2001:db8:1::9", "", false},
		{"IPv6 beside it", tcp, "2001:db8:2::9", 443, nil, "reset from 2001:db8:2::9", "no_rule 2001:db8:2::9 443 tcp", false},
		{"IPv6 by UDP", udp, "2001:db8:1::9", 443, nil, "icmp 1/1", "no_rule 2001:db8:1::9 443 udp", false},
		{"an IPv4 address in IPv6", tcp, "::ffff:203.0.113.9", 443, nil, "any", "forbidden_address ::ffff:203.0.113.9 443 tcp", false},
		{"NAT64", tcp, "64:ff9b::cb00:7109", 443, nil, "reset from 64:ff9b::cb00:7109", "forbidden_address 64:ff9b::cb00:7109 443 tcp", false},
		{"IPv6 link-local", tcp, "fe80::1", 443, nil, "any", "forbidden_address fe80::1 443 tcp", false},
		{"ping by IPv6", icmp6, "2001:db8:1::9", 0, nil, "icmp 1/1", "no_rule 2001:db8:1::9 0 icmp", false},
		{"router solicitation", icmp6, "ff02::2", 0, func(f *frame) { f.icmp, f.src = 133, netip.IPv6Unspecified() }, "nothing", "", false},
		{"neighbour advertisement", icmp6, "fd00:656d::1", 0, func(f *frame) { f.icmp, f.payload = 136, make([]byte, 24) }, "nothing", "", false},
		{"wrong IPv6 source", tcp, "2001:db8:1::9", 443, func(f *frame) { f.src = netip.MustParseAddr("fd00:656d::9") }, "nothing", "", true},
		{"IPv6 fragment", 44, "2001:db8:1::9", 443, func(f *frame) { f.payload = append([]byte{6, 0, 0, 1, 0, 0, 0, 1}, make([]byte, 24)...) }, "nothing", "", true},
		{"IPv6 routing header", 43, "2001:db8:1::9", 443, func(f *frame) { f.payload = append([]byte{6, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 20)...) }, "nothing", "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := func(s string) string { return strings.ReplaceAll(s, "GUEST", b.guest.Addr.String()) }
			before, denials := b.counts(), b.denials()
			f := b.honest(tt.proto, name(tt.dst), tt.port)
			if tt.change != nil {
				tt.change(&f)
			}
			// Nothing comes from the test before.
			for {
				if got, _ := b.read(time.Millisecond); got == "nothing" {
					break
				}
			}
			if got := b.ask(f, strings.Replace(tt.want, "any", "nothing", 1)); got != tt.want && (tt.want != "any" || strings.HasPrefix(got, "open") || strings.HasPrefix(got, "udp")) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			after := b.counts()
			if got := after.Forged - before.Forged; (got == 1) != tt.forged {
				t.Errorf("%d packets count as forged", got)
			}
			var fresh []string
			for _, d := range b.denials() {
				if !slices.Contains(denials, d) {
					fresh = append(fresh, d[:strings.LastIndex(d, " ")])
				}
			}
			if got := strings.Join(fresh, ", "); got != name(tt.denied) {
				t.Errorf("denied is %q, want %q", got, name(tt.denied))
			}
		})
	}
}

func arpRequest(g Guest) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, g.MAC...), g.Addr.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), g.Gateway.AsSlice()...)
}

func acceptAll(listeners []net.Listener) {
	for _, l := range listeners {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
	}
}

// answerAll answers each datagram with where it was for, from there.
func answerAll(b *bench) {
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := b.s.dnsUDP.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = b.s.dnsUDP.WriteTo([]byte("dns"), from)
		}
	}()
	for _, c := range b.s.udp {
		go func() {
			for {
				_, from, to, err := readUDP(c)
				if err != nil {
					return
				}
				r, err := b.s.reply(to, from)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = r.Write([]byte(to.String()))
				_ = r.Close()
			}
		}()
	}
}

// readUDP returns a datagram, who sent it, and where to.
func readUDP(c *net.UDPConn) (data []byte, from, to netip.AddrPort, err error) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
	if err != nil {
		return nil, from, to, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, from, to, err
	}
	for _, m := range messages {
		switch sa := m.Data; {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR:
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), binary.BigEndian.Uint16(sa[2:]))
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR:
			to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(sa[8:24])), binary.BigEndian.Uint16(sa[2:]))
		}
	}
	return buf[:n], from, to, nil
}
