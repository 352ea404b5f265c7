package egress

import (
	"flag"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/emberd/emberd/internal/sandbox"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := differ(got, string(want)); err != nil {
		t.Errorf("%s: %v (if that is meant: go test ./internal/egress -update)", path, err)
	}
}

func TestRulesAreThoseThatWereRead(t *testing.T) {
	for name, ipv6 := range map[string]bool{"ipv4.rules": false, "ipv6.rules": true} {
		golden(t, name, newRuleset(GuestOf("vm_0123456789ab"), ipv6).text())
	}
}

// What nothing else decides about is dropped, wherever it comes by.
func TestEveryBaseChainEndsWithADrop(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		seen := map[uint32]bool{}
		for _, c := range newRuleset(GuestOf("vm_0123456789ab"), ipv6).chains {
			if c.Hooknum == nil {
				continue
			}
			seen[uint32(*c.Hooknum)] = true
			if got := ruleText(c.rules[len(c.rules)-1]); got != "\tdrop\n" || *c.Policy != 0 {
				t.Errorf("%s ends with %q and policy %d", c.Name, got, *c.Policy)
			}
		}
		for _, hook := range []uint32{unix.NF_INET_PRE_ROUTING, unix.NF_INET_LOCAL_IN, unix.NF_INET_FORWARD, unix.NF_INET_LOCAL_OUT} {
			if !seen[hook] {
				t.Errorf("nothing is at hook %d", hook)
			}
		}
	}
}

func elementsText(p *policy, ipv6 bool) string {
	var b strings.Builder
	for _, f := range families(GuestOf("vm_0123456789ab"), ipv6) {
		all := elements(p, f)
		for _, name := range []string{rangeSet + f.suffix, wholeSet + f.suffix} {
			fmt.Fprintf(&b, "%s\n", name)
			for _, e := range all[name] {
				part := func(key []byte) string {
					addr, _ := netip.AddrFromSlice(key[:f.size])
					rest := key[f.size:]
					text := fmt.Sprintf("%s . %d", addr, rest[0])
					if len(rest) > 4 {
						text += fmt.Sprintf(" . %d", int(rest[4])<<8|int(rest[5]))
					}
					return text
				}
				fmt.Fprintf(&b, "\t%s - %s\n", part(e.Key), part(e.KeyEnd))
			}
		}
	}
	return b.String()
}

func TestElementsAreThoseThatWereRead(t *testing.T) {
	p := policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{
		{Host: "api.example.org"},
		rangeRule("203.0.113.0/24", sandbox.TCP, 443, 5432),
		rangeRule("203.0.112.0/24", sandbox.TCP, 443),    // beside it
		rangeRule("203.0.113.128/25", sandbox.TCP, 443),  // in it
		rangeRule("203.0.113.0/24", sandbox.UDP, 443),    // another protocol
		rangeRule("198.51.0.0/16", sandbox.TCP),          // all ports
		rangeRule("198.51.100.7/32", sandbox.TCP, 22),    // in that
		rangeRule("10.1.0.0/16", sandbox.TCP, 80),        // the operator allows it
		rangeRule("2001:db8::/32", sandbox.TCP, 443),     //
		rangeRule("2001:db8:1::/48", sandbox.UDP),        //
		rangeRule("255.255.255.255/32", sandbox.UDP, 67), // the last of all
	}}, "10.1.0.0/16", "255.255.255.255/32")
	golden(t, "elements", elementsText(p, true))
	// The operator allows less than when the policy was made.
	golden(t, "elements.narrowed", elementsText(newPolicy(p.Egress, Ranges(parseAll("10.1.2.0/24"))), true))
}

// universe is the addresses that random policies are about: few, so that rules meet.
var universe = parseAll("203.0.113.0/26", "10.1.2.0/27", "9.255.255.240/28", "100.64.0.0/29", "127.0.0.0/29", "255.255.255.240/28",
	"2001:db8::/122", "fd00:656d::/124", "::/124", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124")

func drawAddr(t *rapid.T, label string) netip.Addr {
	p := rapid.SampledFrom(universe).Draw(t, label+" in")
	addr := p.Addr()
	for range rapid.IntRange(0, 1<<(p.Addr().BitLen()-p.Bits())-1).Draw(t, label) {
		addr = addr.Next()
	}
	return addr
}

var drawnPorts = []uint16{0, 22, 53, 80, 443, 1024, 65535}

func drawPolicy(t *rapid.T) *policy {
	var e sandbox.Egress
	for range rapid.IntRange(0, 12).Draw(t, "rules") {
		addr := drawAddr(t, "range")
		bits := rapid.IntRange(addr.BitLen()-12, addr.BitLen()).Draw(t, "bits")
		rule := sandbox.EgressRule{CIDR: netip.PrefixFrom(addr, bits).Masked(), Protocol: rapid.SampledFrom([]sandbox.Protocol{sandbox.TCP, sandbox.UDP}).Draw(t, "protocol")}
		rule.Ports = rapid.SliceOfNDistinct(rapid.SampledFrom(drawnPorts[1:]), 0, 3, rapid.ID[uint16]).Draw(t, "ports")
		slices.Sort(rule.Ports)
		e.Allow = append(e.Allow, rule)
	}
	var ranges Ranges
	for range rapid.IntRange(0, 3).Draw(t, "operator's") {
		addr := drawAddr(t, "operator's range")
		ranges = append(ranges, netip.PrefixFrom(addr, rapid.IntRange(addr.BitLen()-6, addr.BitLen()).Draw(t, "bits")).Masked())
	}
	e.TotalMiB = rapid.SampledFrom([]int{0, 1}).Draw(t, "total")
	return newPolicy(e, ranges)
}

func drawFrame(t *rapid.T, g Guest, p *policy) frame {
	f := frame{srcMAC: g.MAC, dstMAC: g.GatewayMAC, vlan: -1, srcPort: 9, flags: tcpSYN}
	f.dst = drawAddr(t, "to")
	if len(p.cidrs) > 0 && rapid.Bool().Draw(t, "at an edge") {
		s := spanOf(rapid.SampledFrom(p.cidrs).Draw(t, "rule").CIDR)
		at := []netip.Addr{s.first, s.last, s.first.Prev(), s.last.Next()}
		if f.dst = rapid.SampledFrom(at).Draw(t, "edge"); !f.dst.IsValid() {
			f.dst = s.first
		}
	}
	f.src = g.Addr
	protos := []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_SCTP, unix.IPPROTO_GRE}
	if f.dst.Is6() {
		f.src = g.Addr6
		protos = append(protos, unix.IPPROTO_ICMPV6, unix.IPPROTO_HOPOPTS, unix.IPPROTO_FRAGMENT)
	}
	f.proto = rapid.SampledFrom(protos).Draw(t, "protocol")
	f.port = rapid.SampledFrom(drawnPorts).Draw(t, "port")
	f.flags = rapid.SampledFrom([]byte{tcpSYN, tcpSYN, tcpSYN, tcpACK, tcpSYN | tcpACK, tcpRST, 0}).Draw(t, "flags")
	f.icmp = rapid.SampledFrom([]byte{0, 3, 8, 128, 133}).Draw(t, "type")
	f.payload = make([]byte, rapid.SampledFrom([]int{24, 1400}).Draw(t, "size"))
	switch rapid.IntRange(0, 15).Draw(t, "forgery") {
	case 0:
		f.srcMAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	case 1:
		if f.src = drawAddr(t, "from"); f.src.Is4() != f.dst.Is4() {
			f.src = f.dst
		}
	case 2:
		f.fragment = rapid.SampledFrom([]uint16{0x2000, 1, 0x2001, 0x4000}).Draw(t, "fragment")
	case 3:
		f.options = []byte{1, 1, 1, 0}
	case 4:
		f.dstMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	case 5:
		f.dstMAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}
	}
	return f
}

// expected is what the policy says about a frame, in the words of the policy.
func expected(p *policy, g Guest, ipv6 bool, f frame, in string, socket, resolved, over bool) outcome {
	six := f.dst.Is6()
	echo := byte(8)
	own, icmp := g.Addr, byte(unix.IPPROTO_ICMP)
	if six {
		own, icmp, echo = g.Addr6, unix.IPPROTO_ICMPV6, 128
	}
	drop := outcome{verdict: "drop"}
	switch {
	case in != TAP || six && !ipv6:
		return drop
	case six && (f.proto == unix.IPPROTO_HOPOPTS || f.proto == icmp && f.icmp != echo):
		return drop
	case f.srcMAC.String() != g.MAC.String() || f.src != own:
		return outcome{verdict: "drop", forged: true}
	case !six && (f.fragment&0x3fff != 0 || len(f.options) > 0):
		return outcome{verdict: "drop", forged: true}
	case six && f.proto != unix.IPPROTO_TCP && f.proto != unix.IPPROTO_UDP && f.proto != icmp:
		return outcome{verdict: "drop", forged: true}
	}
	proto := map[byte]sandbox.Protocol{unix.IPPROTO_TCP: sandbox.TCP, unix.IPPROTO_UDP: sandbox.UDP}[f.proto]
	set := deniedSet
	if f.dstMAC[0]&1 == 0 && !f.dst.IsLoopback() {
		verdict := ""
		switch {
		case proto != "" && f.dst == g.Gateway && f.port == 53, socket:
			verdict = "admit"
		case proto != "" && (resolved || p.allowsAddr(f.dst, proto, f.port)):
			verdict = "relay"
		}
		if verdict != "" && !over {
			return outcome{verdict: verdict}
		}
		if verdict != "" {
			set = limitedSet
		}
	}
	suffix := "4"
	if six {
		suffix = "6"
	}
	port := f.port
	if proto == "" {
		port = 0
	}
	counted := fmt.Sprintf("%s %x", set+suffix, append(f.dst.AsSlice(), f.proto, 0, 0, 0, byte(port>>8), byte(port), 0, 0))
	switch {
	case f.proto == icmp && f.icmp != echo:
		return drop
	case proto == sandbox.TCP && f.flags&(tcpSYN|tcpACK) != tcpSYN:
		return outcome{verdict: "reset"}
	case proto == sandbox.TCP:
		return outcome{verdict: "reset", counted: counted}
	}
	return outcome{verdict: "unreachable", counted: counted}
}

// Whatever the policy and whatever the packet, the rules say what the policy says.
func TestRulesDecideAsThePolicyDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPolicy(t)
		g := GuestOf(sandbox.VMID(rapid.StringMatching(`vm_[0-9a-f]{12}`).Draw(t, "vm")))
		ipv6 := rapid.Bool().Draw(t, "IPv6")
		e := &evaluator{ruleset: newRuleset(g, ipv6), elements: map[string][]nftElement{}, of: quota(p)}
		for _, f := range e.families {
			maps.Copy(e.elements, elements(p, f))
		}
		for range 20 {
			f := drawFrame(t, g, p)
			in := rapid.SampledFrom([]string{TAP, TAP, TAP, TAP, TAP, TAP, TAP, "lo"}).Draw(t, "in")
			socket := rapid.IntRange(0, 7).Draw(t, "socket") == 0
			resolved := rapid.IntRange(0, 3).Draw(t, "resolved") == 0
			suffix := "4"
			if f.dst.Is6() {
				suffix = "6"
			}
			e.elements[nameSet+suffix] = nil
			if resolved && (f.proto == unix.IPPROTO_TCP || f.proto == unix.IPPROTO_UDP) {
				proto := map[byte]sandbox.Protocol{unix.IPPROTO_TCP: sandbox.TCP, unix.IPPROTO_UDP: sandbox.UDP}[f.proto]
				e.elements[nameSet+suffix] = []nftElement{{Key: key(f.dst, proto, f.port)}}
			}
			e.used = rapid.SampledFrom([]uint64{0, 1 << 20}).Draw(t, "used")
			over := e.used >= e.of
			got := e.receive(in, f.bytes()[10:], socket)
			if want := expected(p, g, ipv6, f, in, socket, resolved, over); got != want {
				t.Fatalf("%+v: the rules say %+v, the policy %+v", f, got, want)
			}
		}
	})
}

// Only what is for the guest leaves, and only by its interface.
func TestOutput(t *testing.T) {
	g := GuestOf("vm_0123456789ab")
	to := func(dst netip.Addr, proto byte) frame {
		src := netip.MustParseAddr("203.0.113.9")
		if dst.Is6() {
			src = netip.MustParseAddr("2001:db8::9")
		}
		return frame{srcMAC: g.GatewayMAC, dstMAC: g.MAC, vlan: -1, src: src, dst: dst, proto: proto, flags: tcpACK, port: 9, payload: make([]byte, 1000)}
	}
	reset := to(g.Addr, unix.IPPROTO_TCP)
	reset.flags = tcpRST
	unreachable, redirect := to(g.Addr, unix.IPPROTO_ICMP), to(g.Addr, unix.IPPROTO_ICMP)
	unreachable.icmp, redirect.icmp = 3, 5
	advertisement := to(g.Addr6, unix.IPPROTO_ICMPV6)
	advertisement.icmp = 134
	tests := []struct {
		name string
		out  string
		f    frame
		over bool
		want bool
	}{
		{"a stream", TAP, to(g.Addr, unix.IPPROTO_TCP), false, true},
		{"a datagram", TAP, to(g.Addr, unix.IPPROTO_UDP), false, true},
		{"a stream by IPv6", TAP, to(g.Addr6, unix.IPPROTO_TCP), false, true},
		{"somewhere else", "lo", to(g.Addr, unix.IPPROTO_TCP), false, false},
		{"somebody else", TAP, to(netip.MustParseAddr("100.64.0.9"), unix.IPPROTO_TCP), false, false},
		{"over the limit", TAP, to(g.Addr, unix.IPPROTO_TCP), true, false},
		{"a datagram over it", TAP, to(g.Addr, unix.IPPROTO_UDP), true, false},
		{"a reset over it", TAP, reset, true, true},
		{"unreachable, over it", TAP, unreachable, true, true},
		{"a redirect", TAP, redirect, false, false},
		{"a router advertisement", TAP, advertisement, false, false},
		{"another protocol", TAP, to(g.Addr, unix.IPPROTO_SCTP), false, false},
	}
	for _, tt := range tests {
		e := &evaluator{ruleset: newRuleset(g, true), of: 1 << 20}
		if tt.over {
			e.used = e.of
		}
		if got := e.send(tt.out, tt.f.bytes()[10:]); got != tt.want {
			t.Errorf("%s: leaves is %t", tt.name, got)
		}
	}
}

func TestGuestOf(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for i := range 5000 {
		g := GuestOf(sandbox.VMID(fmt.Sprintf("vm_%d", i)))
		switch {
		case !guests.Contains(g.Addr) || !guests6.Contains(g.Addr6):
			t.Fatalf("%v is outside", g)
		case g.Addr == g.Gateway || g.Addr6 == g.Gateway6 || g.MAC.String() == g.GatewayMAC.String():
			t.Fatalf("%v is the gateway", g)
		case g.Addr == guests.Addr() || g.Addr == spanOf(guests).last || g.MAC[0]&3 != 2:
			t.Fatalf("%v is no address of a host", g)
		}
		seen[g.Addr] = true
	}
	if len(seen) < 4990 {
		t.Errorf("5000 guests have %d addresses", len(seen))
	}
	// A later emberd finds it where this one has put it.
	if got := GuestOf("vm_1"); got.Addr.String() != "100.125.139.149" || got.MAC.String() != "02:dd:8e:01:6e:72" {
		t.Errorf("got %s, %s", got.Addr, got.MAC)
	}
}
