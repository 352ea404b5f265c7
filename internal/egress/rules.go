package egress

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The names in the namespace's one table.
const (
	tableName = "emberd"
	// What the policy's rules for ranges allow: rangeSet with a port, wholeSet all
	// ports. What was resolved for its rules for names is in nameSet.
	rangeSet, wholeSet, nameSet = "range", "whole", "name"
	// What was refused, and what was kept out by the limit on bytes.
	deniedSet, limitedSet = "denied", "limited"

	totalQuota     = "total"   // bytes that passed, in both directions
	refusedCounter = "refused" // packets that the policy does not allow
	forgedCounter  = "forged"  // packets that no guest sends that was not changed
)

const (
	// relayPort is where the relay listens, at loopback: a packet for that port
	// anywhere else does not find its sockets.
	relayPort = 1024
	// relayed marks what the rules let in.
	relayed = 1

	// Limits of what a guest can have the kernel keep.
	maxNames  = 16384
	maxDenied = 1024
	// deniedFor is how long a denial is kept after it was repeated last.
	deniedFor = time.Hour
)

var (
	relayAddr  = netip.MustParseAddr("127.0.0.1")
	relayAddr6 = netip.MustParseAddr("::1")
)

// family is what differs between IPv4 and IPv6.
type family struct {
	suffix         string // of the names of sets
	nfproto        byte
	addr           nftables.SetDatatype
	src, dst       uint32 // offsets in the header
	size           uint32 // of an address
	proto, port    uint32 // registers behind an address in the first
	guest, gateway netip.Addr
	relay          netip.Addr
	ping           icmp
}

// icmp is what is known of a family's control messages.
type icmp struct{ proto, echo, unreachable byte }

func families(guest Guest, ipv6 bool) []family {
	// Registers as the kernel tells them back.
	all := []family{{"4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, 16, 4, 9, 10, guest.Addr, guest.Gateway, relayAddr, icmp{unix.IPPROTO_ICMP, 8, 3}}}
	if ipv6 {
		all = append(all, family{"6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, 24, 16, 2, 13, guest.Addr6, guest.Gateway6, relayAddr6, icmp{unix.IPPROTO_ICMPV6, 128, 1}})
	}
	return all
}

// ruleset is everything in the table but the elements of its sets: it is the same
// for every policy.
type ruleset struct {
	table    *nftables.Table
	families []family
	sets     []*nftables.Set
	chains   []*chain
}

// chain is a chain with its rules.
type chain struct {
	*nftables.Chain
	rules [][]expr.Any
}

func (c *chain) add(parts ...[]expr.Any) {
	var rule []expr.Any
	for _, part := range parts {
		rule = append(rule, part...)
	}
	c.rules = append(c.rules, rule)
}

// newRuleset returns the rules for a guest. A packet of the guest's passes three
// chains: guard drops what an honest guest does not send, before fragments are put
// together; sort hands to the relay, or to the resolver, what the policy allows,
// and refuses the rest; input takes in what sort has marked.
func newRuleset(guest Guest, ipv6 bool) *ruleset {
	r := &ruleset{table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}, families: families(guest, ipv6)}
	for _, f := range r.families {
		r.addSets(f)
	}
	r.guard(guest, ipv6)
	r.sort()
	r.admit()
	r.relay()
	r.refusals("over", limitedSet)
	r.refusals("refuse", deniedSet)
	input := r.base("input", nftables.ChainHookInput, 0)
	input.add(meta(expr.MetaKeyMARK), eq(1, native(relayed)), accept())
	input.add(drop())
	r.base("forward", nftables.ChainHookForward, 0).add(drop())
	r.output()
	return r
}

func (r *ruleset) addSets(f family) {
	whole := nftables.MustConcatSetType(f.addr, nftables.TypeInetProto)
	full := nftables.MustConcatSetType(f.addr, nftables.TypeInetProto, nftables.TypeInetService)
	for _, s := range []*nftables.Set{
		{Name: rangeSet, KeyType: full, Interval: true},
		{Name: wholeSet, KeyType: whole, Interval: true},
		{Name: nameSet, KeyType: full, HasTimeout: true, Size: maxNames},
		{Name: deniedSet, KeyType: full, HasTimeout: true, Timeout: deniedFor, Dynamic: true, Size: maxDenied},
		{Name: limitedSet, KeyType: full, HasTimeout: true, Timeout: deniedFor, Dynamic: true, Size: maxDenied},
	} {
		s.Table, s.Concatenation = r.table, true
		s.Name += f.suffix
		s.ID = uint32(len(r.sets) + 1)
		r.sets = append(r.sets, s)
	}
}

// set returns the set with that name.
func (r *ruleset) set(name string) *nftables.Set {
	for _, s := range r.sets {
		if s.Name == name {
			return s
		}
	}
	panic("egress: no set " + name)
}

func (r *ruleset) chain(name string) *chain {
	c := &chain{Chain: &nftables.Chain{Name: name, Table: r.table}}
	r.chains = append(r.chains, c)
	return c
}

// base adds a chain that packets come to, and that drops what it does not accept.
func (r *ruleset) base(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *chain {
	c := r.chain(name)
	policy := nftables.ChainPolicyDrop
	c.Hooknum, c.Priority, c.Type, c.Policy = hook, &priority, nftables.ChainTypeFilter, &policy
	return c
}

// beforeDefrag is the priority at which fragments have not been put together.
const beforeDefrag = -450

func (r *ruleset) guard(guest Guest, ipv6 bool) {
	c := r.base("guard", nftables.ChainHookPrerouting, beforeDefrag)
	c.add(meta(expr.MetaKeyIIFNAME), neq(1, ifname(TAP)), drop())
	if !ipv6 {
		c.add(is(unix.NFPROTO_IPV6), drop())
	}
	for _, f := range r.families {
		honest := func(last ...[]expr.Any) {
			parts := append([][]expr.Any{
				is(f.nfproto), load(expr.PayloadBaseLLHeader, 6, 6, 1), eq(1, guest.MAC),
				load(expr.PayloadBaseNetworkHeader, f.src, f.size, 1), eq(1, f.guest.AsSlice()),
			}, last...)
			c.add(append(parts, accept())...)
		}
		if f.nfproto == unix.NFPROTO_IPV4 {
			// No options, and no fragment.
			honest(load(expr.PayloadBaseNetworkHeader, 0, 1, 1), eq(1, []byte{0x45}),
				load(expr.PayloadBaseNetworkHeader, 6, 2, 1), mask(0x3f, 0xff), eq(1, []byte{0, 0}))
			continue
		}
		// What a kernel says of itself on a link: groups, neighbours, routers.
		c.add(is(f.nfproto), load(expr.PayloadBaseNetworkHeader, 6, 1, 1), eq(1, []byte{unix.IPPROTO_HOPOPTS}), drop())
		c.add(is(f.nfproto), load(expr.PayloadBaseNetworkHeader, 6, 1, 1), eq(1, []byte{f.ping.proto}),
			load(expr.PayloadBaseTransportHeader, 0, 1, 1), neq(1, []byte{f.ping.echo}), drop())
		// No extension headers.
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, f.ping.proto} {
			honest(load(expr.PayloadBaseNetworkHeader, 6, 1, 1), eq(1, []byte{proto}))
		}
	}
	c.add(object(nftables.ObjTypeCounter, forgedCounter))
	c.add(drop())
}

func (r *ruleset) sort() {
	c := r.base("sort", nftables.ChainHookPrerouting, -150)
	c.add(meta(expr.MetaKeyPKTTYPE), neq(1, []byte{unix.PACKET_HOST}), goTo("refuse"))
	for _, f := range r.families {
		// Where the relay listens, and nobody else may be.
		loopback := load(expr.PayloadBaseNetworkHeader, f.dst, f.size, 1)
		if f.nfproto == unix.NFPROTO_IPV4 {
			loopback = append(load(expr.PayloadBaseNetworkHeader, f.dst, 1, 1), eq(1, f.relay.AsSlice()[:1])...)
		} else {
			loopback = append(loopback, eq(1, f.relay.AsSlice())...)
		}
		c.add(is(f.nfproto), loopback, goTo("refuse"))
		if f.nfproto == unix.NFPROTO_IPV4 {
			for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				c.add(is(f.nfproto), load(expr.PayloadBaseNetworkHeader, f.dst, f.size, 1), eq(1, f.gateway.AsSlice()),
					l4proto(proto), load(expr.PayloadBaseTransportHeader, 2, 2, 1), eq(1, port(53)), goTo("admit"))
			}
		}
	}
	// What goes on is the relay's to end: an address that was resolved may not be
	// in its set any more.
	c.add([]expr.Any{&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}}, eq(1, []byte{1}), goTo("admit"))
	for _, f := range r.families {
		to := [][]expr.Any{is(f.nfproto), load(expr.PayloadBaseNetworkHeader, f.dst, f.size, 1),
			{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: f.proto}}}
		ports := load(expr.PayloadBaseTransportHeader, 2, 2, f.port)
		for _, name := range []string{nameSet, rangeSet} {
			c.add(append(to, ports, r.in(name+f.suffix), goTo("relay"))...)
		}
		c.add(append(to, r.in(wholeSet+f.suffix), goTo("relay"))...)
	}
	c.add(jump("refuse"))
	c.add(drop())
}

// admit takes in what is for a socket in the namespace.
func (r *ruleset) admit() {
	c := r.chain("admit")
	c.add(object(nftables.ObjTypeQuota, totalQuota), goTo("over"))
	c.add(markRelayed(), accept())
}

// relay hands to the relay what is for somebody else. While no relay listens
// nothing is found there, and the packet is dropped.
func (r *ruleset) relay() {
	c := r.chain("relay")
	c.add(object(nftables.ObjTypeQuota, totalQuota), goTo("over"))
	for _, f := range r.families {
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			c.add(is(f.nfproto), l4proto(proto), value(1, f.relay.AsSlice()), value(f.port, port(relayPort)),
				[]expr.Any{&expr.TProxy{Family: f.nfproto, TableFamily: unix.NFPROTO_INET, RegAddr: 1, RegPort: f.port}},
				markRelayed(), accept())
		}
	}
	c.add(drop())
}

// refusals adds a chain that refuses, and counts by destination in a set. What
// only goes on from something that was counted, or answers, is not counted.
func (r *ruleset) refusals(name, set string) {
	c := r.chain(name)
	for _, f := range r.families {
		c.add(is(f.nfproto), l4proto(f.ping.proto), load(expr.PayloadBaseTransportHeader, 0, 1, 1), neq(1, []byte{f.ping.echo}), drop())
	}
	const syn, ack = 0x02, 0x10
	c.add(l4proto(unix.IPPROTO_TCP), load(expr.PayloadBaseTransportHeader, 13, 1, 1), mask(syn|ack), neq(1, []byte{syn}), tcpReset())
	c.add(object(nftables.ObjTypeCounter, refusedCounter))
	for _, f := range r.families {
		to := func(ports ...[]expr.Any) {
			parts := append([][]expr.Any{is(f.nfproto), load(expr.PayloadBaseNetworkHeader, f.dst, f.size, 1),
				{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: f.proto}}}, ports...)
			c.add(append(parts, r.update(set+f.suffix))...)
		}
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			to(eq(f.proto, []byte{proto}), load(expr.PayloadBaseTransportHeader, 2, 2, f.port))
		}
		to(neq(f.proto, []byte{unix.IPPROTO_TCP}), neq(f.proto, []byte{unix.IPPROTO_UDP}), value(f.port, port(0)))
	}
	c.add(l4proto(unix.IPPROTO_TCP), tcpReset())
	c.add([]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	c.add(drop())
}

// output lets through to the guest what the relay, the resolver and the refusals
// say, and nothing else: the kernel's own words about the link stay here.
func (r *ruleset) output() {
	c := r.base("output", nftables.ChainHookOutput, 0)
	c.add(meta(expr.MetaKeyOIFNAME), neq(1, ifname(TAP)), drop())
	for _, f := range r.families {
		c.add(is(f.nfproto), l4proto(f.ping.proto), load(expr.PayloadBaseTransportHeader, 0, 1, 1), eq(1, []byte{f.ping.unreachable}), accept())
	}
	const rst = 0x04
	c.add(l4proto(unix.IPPROTO_TCP), load(expr.PayloadBaseTransportHeader, 13, 1, 1), mask(rst), eq(1, []byte{rst}), accept())
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		c.add(l4proto(proto), object(nftables.ObjTypeQuota, totalQuota), drop())
	}
	for _, f := range r.families {
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			c.add(is(f.nfproto), load(expr.PayloadBaseNetworkHeader, f.dst, f.size, 1), eq(1, f.guest.AsSlice()), l4proto(proto), accept())
		}
	}
	c.add(drop())
}

// The parts of rules. Each begins with the first register; all values are in the
// order of the network but those that only the kernel knows.

func meta(key expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: 1}} }

func is(nfproto byte) []expr.Any {
	return append(meta(expr.MetaKeyNFPROTO), eq(1, []byte{nfproto})...)
}

func l4proto(proto byte) []expr.Any {
	return append(meta(expr.MetaKeyL4PROTO), eq(1, []byte{proto})...)
}

func load(base expr.PayloadBase, offset, size, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: size}}
}

func eq(register uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}}
}

func neq(register uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: data}}
}

func mask(bits ...byte) []expr.Any {
	return []expr.Any{&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(bits)), Mask: bits, Xor: make([]byte, len(bits))}}
}

func value(register uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: register, Data: data}}
}

func object(kind nftables.ObjType, name string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(kind), Name: name}}
}

func markRelayed() []expr.Any {
	return append(value(1, native(relayed)), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
}

func (r *ruleset) in(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set, SetID: r.set(set).ID}}
}

func (r *ruleset) update(set string) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: 1, SetName: set, SetID: r.set(set).ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}}}
}

func tcpReset() []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func accept() []expr.Any           { return verdict(expr.VerdictAccept, "") }
func drop() []expr.Any             { return verdict(expr.VerdictDrop, "") }
func jump(chain string) []expr.Any { return verdict(expr.VerdictJump, chain) }
func goTo(chain string) []expr.Any { return verdict(expr.VerdictGoto, chain) }

// ifname is the name of an interface as rules compare it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func port(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// unlimited is a quota that is never used up.
const unlimited = math.MaxInt64

// quota is the limit of a policy on what passes in both directions.
func quota(p *policy) uint64 {
	if p.TotalMiB == 0 {
		return unlimited
	}
	return uint64(p.TotalMiB) << 20
}
