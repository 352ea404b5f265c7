package egress

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

// span is the addresses from first to last, both of one family.
type span struct{ first, last netip.Addr }

func spanOf(p netip.Prefix) span {
	last := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	addr, _ := netip.AddrFromSlice(last)
	return span{p.Masked().Addr(), addr}
}

// union returns the addresses of all prefixes of a family, in order and with gaps
// between them.
func union(prefixes []netip.Prefix, is4 bool) []span {
	var spans []span
	for _, p := range prefixes {
		if p.Addr().Is4() == is4 {
			spans = append(spans, spanOf(p))
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return a.first.Compare(b.first) })
	var joined []span
	for _, s := range spans {
		if n := len(joined); n > 0 {
			// Next is invalid at the end of all addresses, where nothing follows.
			if after := joined[n-1].last.Next(); !after.IsValid() || s.first.Compare(after) <= 0 {
				if s.last.Compare(joined[n-1].last) > 0 {
					joined[n-1].last = s.last
				}
				continue
			}
		}
		joined = append(joined, s)
	}
	return joined
}

// without returns from without what is in cut. Both are as [union] returns them.
func without(from, cut []span) []span {
	var left []span
	for _, s := range from {
		empty := false
		for _, c := range cut {
			if c.last.Less(s.first) || s.last.Less(c.first) {
				continue
			}
			if s.first.Less(c.first) {
				left = append(left, span{s.first, c.first.Prev()})
			}
			if empty = s.last.Compare(c.last) <= 0; empty {
				break
			}
			s.first = c.last.Next()
		}
		if !empty {
			left = append(left, s)
		}
	}
	return left
}

// elements returns what is in the sets of ranges under a policy. Overlapping rules
// are joined: intervals of one set may not overlap.
func elements(p *policy, f family) map[string][]nftables.SetElement {
	is4 := f.nfproto == unix.NFPROTO_IPV4
	cut := without(union(forbidden, is4), union(p.ranges, is4))
	type service struct {
		proto sandbox.Protocol
		port  uint16
		all   bool
	}
	prefixes := map[service][]netip.Prefix{}
	for _, rule := range p.cidrs {
		if len(rule.Ports) == 0 {
			s := service{rule.Protocol, 0, true}
			prefixes[s] = append(prefixes[s], rule.CIDR)
		}
		for _, port := range rule.Ports {
			s := service{rule.Protocol, port, false}
			prefixes[s] = append(prefixes[s], rule.CIDR)
		}
	}
	all := map[string][]nftables.SetElement{rangeSet + f.suffix: nil, wholeSet + f.suffix: nil}
	for s, prefixes := range prefixes {
		for _, span := range without(union(prefixes, is4), cut) {
			if s.all {
				all[wholeSet+f.suffix] = append(all[wholeSet+f.suffix], nftables.SetElement{
					Key: key(span.first, s.proto), KeyEnd: key(span.last, s.proto),
				})
				continue
			}
			all[rangeSet+f.suffix] = append(all[rangeSet+f.suffix], nftables.SetElement{
				Key: key(span.first, s.proto, s.port), KeyEnd: key(span.last, s.proto, s.port),
			})
		}
	}
	for _, elements := range all {
		slices.SortFunc(elements, func(a, b nftables.SetElement) int { return slices.Compare(a.Key, b.Key) })
	}
	return all
}

// key is an element's key: each part begins at a multiple of four bytes.
func key(addr netip.Addr, proto sandbox.Protocol, ports ...uint16) []byte {
	number := byte(unix.IPPROTO_TCP)
	if proto == sandbox.UDP {
		number = unix.IPPROTO_UDP
	}
	b := append(addr.AsSlice(), number, 0, 0, 0)
	for _, p := range ports {
		b = append(b, byte(p>>8), byte(p), 0, 0)
	}
	return b
}

// target is what a key with a port stands for.
func target(key []byte) (addr netip.Addr, proto sandbox.Protocol, port uint16, ok bool) {
	size := len(key) - 8
	if addr, ok = netip.AddrFromSlice(key[:max(size, 0)]); !ok {
		return addr, "", 0, false
	}
	switch number := key[size]; number {
	case unix.IPPROTO_TCP:
		proto = sandbox.TCP
	case unix.IPPROTO_UDP:
		proto = sandbox.UDP
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		proto = icmpProtocol
	default:
		proto = sandbox.Protocol(strconv.Itoa(int(number)))
	}
	return addr, proto, uint16(key[size+4])<<8 | uint16(key[size+5]), true
}

// maxComment is how much the kernel keeps of what an element is for.
const maxComment = 250

// comment says which hosts an element was opened for, so that a later daemon knows.
// What does not fit is left out: then the element goes with the hosts that fit.
func comment(hosts []string) string {
	slices.SortFunc(hosts, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	text := ""
	for _, host := range slices.Compact(hosts) {
		if len(text)+len(host)+1 > maxComment {
			break
		}
		text += " " + host
	}
	return strings.TrimPrefix(text, " ")
}
