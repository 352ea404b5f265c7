package egress

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// evaluator runs packets through rules as the kernel would. It knows those parts
// of rules that this package makes.
type evaluator struct {
	*ruleset
	elements map[string][]nftables.SetElement
	used, of uint64 // of the quota

	// Of one packet.
	frame     []byte // without the virtio header
	in, out   string
	socket    bool // it belongs to a transparent one
	mark      uint32
	registers [80]byte
	result    outcome
}

// outcome is what becomes of a packet.
type outcome struct {
	verdict string // "relay", "admit", "reset", "unreachable" or "drop"
	counted string // the set and the key that count it
	forged  bool
}

// hooks are the chains at a hook, in the order in which packets come to them.
func (e *evaluator) hooks(hook *nftables.ChainHook) []*chain {
	var at []*chain
	for _, c := range e.chains {
		if c.Hooknum != nil && *c.Hooknum == *hook {
			at = append(at, c)
		}
	}
	slices.SortFunc(at, func(a, b *chain) int { return cmp.Compare(*a.Priority, *b.Priority) })
	return at
}

// receive is what becomes of a packet from in.
func (e *evaluator) receive(in string, frame []byte, socket bool) outcome {
	e.in, e.out, e.frame, e.socket, e.mark, e.result = in, "", frame, socket, 0, outcome{}
	for _, hook := range []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookInput} {
		for _, c := range e.hooks(hook) {
			e.registers = [80]byte{}
			if !e.run(c) {
				e.result.verdict = cmp.Or(e.result.verdict, "drop")
				return e.result
			}
		}
	}
	e.result.verdict = cmp.Or(e.result.verdict, "admit")
	return e.result
}

// send tells whether a packet leaves by out.
func (e *evaluator) send(out string, frame []byte) bool {
	e.in, e.out, e.frame, e.socket, e.mark, e.result = "", out, frame, false, 0, outcome{}
	for _, c := range e.hooks(nftables.ChainHookOutput) {
		if !e.run(c) {
			return false
		}
	}
	return true
}

// run tells whether a base chain accepts the packet.
func (e *evaluator) run(c *chain) bool {
	switch verdict := e.walk(c); verdict {
	case expr.VerdictAccept:
		return true
	case expr.VerdictDrop:
		return false
	default:
		return *c.Policy == nftables.ChainPolicyAccept
	}
}

// walk returns accept, drop, or continue at the end of a chain.
func (e *evaluator) walk(c *chain) expr.VerdictKind {
	for _, rule := range c.rules {
		kind, to := e.rule(rule)
		switch kind {
		case expr.VerdictAccept, expr.VerdictDrop:
			return kind
		case expr.VerdictJump:
			if kind := e.walk(e.named(to)); kind != expr.VerdictContinue {
				return kind
			}
		case expr.VerdictGoto:
			return e.walk(e.named(to))
		}
	}
	return expr.VerdictContinue
}

func (e *evaluator) named(name string) *chain {
	i := slices.IndexFunc(e.chains, func(c *chain) bool { return c.Name == name })
	return e.chains[i]
}

func (e *evaluator) at(register uint32) []byte {
	if register < 8 {
		return e.registers[(register-1)*16:]
	}
	return e.registers[(register-8)*4:]
}

// put writes a value as the kernel does: what is left of its last register is zero.
func (e *evaluator) put(register uint32, data []byte) {
	clear(e.at(register)[:(len(data)+3)/4*4])
	copy(e.at(register), data)
}

// rule runs the parts of a rule until one does not match.
func (e *evaluator) rule(parts []expr.Any) (expr.VerdictKind, string) {
	for _, part := range parts {
		ok := true
		switch p := part.(type) {
		case *expr.Meta:
			if p.SourceRegister {
				e.mark = binary.NativeEndian.Uint32(e.at(p.Register))
			} else {
				e.put(p.Register, e.meta(p.Key))
			}
		case *expr.Payload:
			var data []byte
			if data, ok = e.payload(p); ok {
				e.put(p.DestRegister, data)
			}
		case *expr.Bitwise:
			data := make([]byte, p.Len)
			for i := range data {
				data[i] = e.at(p.SourceRegister)[i]&p.Mask[i] ^ p.Xor[i]
			}
			e.put(p.DestRegister, data)
		case *expr.Cmp:
			ok = bytes.Equal(e.at(p.Register)[:len(p.Data)], p.Data) == (p.Op == expr.CmpOpEq)
		case *expr.Immediate:
			e.put(p.Register, p.Data)
		case *expr.Lookup:
			ok = e.lookup(p)
		case *expr.Socket:
			if ok = e.socket; ok {
				e.put(p.Register, []byte{1})
			}
		case *expr.Objref:
			ok = e.object(p)
		case *expr.Dynset:
			size := e.set(p.SetName).KeyType.Bytes
			e.result.counted = fmt.Sprintf("%s %x", p.SetName, e.at(p.SrcRegKey)[:size])
		case *expr.TProxy:
			e.result.verdict = "relay"
		case *expr.Reject:
			e.result.verdict = "unreachable"
			if p.Type == unix.NFT_REJECT_TCP_RST {
				e.result.verdict = "reset"
			}
			return expr.VerdictDrop, ""
		case *expr.Verdict:
			return p.Kind, p.Chain
		default:
			panic(fmt.Sprintf("no such part: %T", part))
		}
		if !ok {
			break
		}
	}
	return expr.VerdictContinue, ""
}

func (e *evaluator) six() bool { return e.frame[12] == 0x86 }

func (e *evaluator) meta(key expr.MetaKey) []byte {
	switch key {
	case expr.MetaKeyIIFNAME:
		return ifname(e.in)
	case expr.MetaKeyOIFNAME:
		return ifname(e.out)
	case expr.MetaKeyNFPROTO:
		if e.six() {
			return []byte{unix.NFPROTO_IPV6}
		}
		return []byte{unix.NFPROTO_IPV4}
	case expr.MetaKeyL4PROTO:
		if e.six() {
			return []byte{e.frame[20]}
		}
		return []byte{e.frame[23]}
	case expr.MetaKeyPKTTYPE:
		switch {
		case bytes.Equal(e.frame[:6], bytes.Repeat([]byte{0xff}, 6)):
			return []byte{unix.PACKET_BROADCAST}
		case e.frame[0]&1 != 0:
			return []byte{unix.PACKET_MULTICAST}
		}
		return []byte{unix.PACKET_HOST}
	case expr.MetaKeyMARK:
		return native(e.mark)
	}
	panic(fmt.Sprintf("no such key: %v", key))
}

func (e *evaluator) payload(p *expr.Payload) ([]byte, bool) {
	at := map[expr.PayloadBase]int{expr.PayloadBaseLLHeader: 0, expr.PayloadBaseNetworkHeader: 14, expr.PayloadBaseTransportHeader: 14 + 40}[p.Base]
	if p.Base == expr.PayloadBaseTransportHeader && !e.six() {
		at = 14 + int(e.frame[14]&15)*4
		if binary.BigEndian.Uint16(e.frame[20:])&0x1fff != 0 {
			return nil, false // it is not there
		}
	}
	at += int(p.Offset)
	if at+int(p.Len) > len(e.frame) {
		return nil, false
	}
	return e.frame[at : at+int(p.Len)], true
}

func (e *evaluator) lookup(p *expr.Lookup) bool {
	set := e.set(p.SetName)
	key := e.at(p.SourceRegister)[:set.KeyType.Bytes]
	types := nftables.ConcatSetTypeElements(set.KeyType)
	found := 0
	for _, element := range e.elements[p.SetName] {
		last := element.KeyEnd
		if last == nil {
			last = element.Key
		}
		in, at := true, 0
		for _, part := range types {
			end := at + int(part.Bytes)
			in = in && bytes.Compare(element.Key[at:end], key[at:end]) <= 0 && bytes.Compare(key[at:end], last[at:end]) <= 0
			at += (int(part.Bytes) + 3) / 4 * 4
		}
		if in {
			found++
		}
	}
	if found > 1 {
		panic(fmt.Sprintf("elements of %s overlap at %x", p.SetName, key))
	}
	return found == 1
}

func (e *evaluator) object(p *expr.Objref) bool {
	switch p.Name {
	case totalQuota:
		e.used += uint64(len(e.frame) - 14)
		return e.used >= e.of
	case forgedCounter:
		e.result.forged = true
	case refusedCounter:
	default:
		panic("no such object: " + p.Name)
	}
	return true
}
