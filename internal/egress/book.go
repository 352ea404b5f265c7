package egress

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/printable"
)

// maxDenials bounds what a book tells apart. What comes after that is counted by
// reason and protocol alone, of which there are few.
const maxDenials = 256

// book keeps what was refused to a guest. Any goroutine may use it.
type book struct {
	now func() time.Time

	mu      sync.Mutex
	entries map[string]*sandbox.EgressDenial
	order   []*sandbox.EgressDenial
}

func newBook() *book {
	return &book{now: time.Now, entries: map[string]*sandbox.EgressDenial{}}
}

// deny counts a refusal. Host may be what a guest sent, as it came; Count and Last
// are the book's to say.
func (b *book) deny(d sandbox.EgressDenial) {
	d.Host = printable.Head(d.Host, maxName)
	d.Count, d.Last = 1, b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[d.Key()]
	if e == nil && len(b.order) >= maxDenials {
		d = sandbox.EgressDenial{Protocol: d.Protocol, Reason: d.Reason, Count: 1, Last: d.Last}
		e = b.entries[d.Key()]
	}
	if e == nil {
		b.entries[d.Key()] = &d
		b.order = append(b.order, &d)
		return
	}
	e.Count++
	e.Last = d.Last
	if e.Rule == nil {
		e.Rule = d.Rule
	}
}

// list returns what was refused, in the order in which it was refused first.
func (b *book) list() []sandbox.EgressDenial {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]sandbox.EgressDenial, len(b.order))
	for i, e := range b.order {
		all[i] = *e
	}
	return all
}

// hostRule returns the rule that allows a name at ports, nil if none can.
func hostRule(name string, proto sandbox.Protocol, ports ...uint16) *sandbox.EgressRule {
	host, why := canonicalHost(name)
	if why != "" {
		return nil
	}
	return &sandbox.EgressRule{Host: host, Ports: slices.Clone(ports), Protocol: proto}
}

// addrRule returns the rule that allows an address at a port.
func addrRule(to netip.AddrPort, proto sandbox.Protocol) *sandbox.EgressRule {
	return &sandbox.EgressRule{CIDR: netip.PrefixFrom(to.Addr(), to.Addr().BitLen()), Ports: []uint16{to.Port()}, Protocol: proto}
}

// guestName returns the canonical form of a name in bytes of a guest. There, and
// unlike in a rule, only the case is free: whoever reads the same bytes behind us
// must not come to another name.
func guestName(raw string) (name string, ok bool) {
	if len(raw) > maxName {
		return "", false
	}
	lower := []byte(raw)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	name, why := canonicalName(string(lower))
	return name, why == "" && name == string(lower)
}
