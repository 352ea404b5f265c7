package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/printable"
)

// Limits of a policy.
const (
	MaxRules = 1000
	MaxPorts = 32 // of one rule
	// MaxRateKiBps and MaxTotalMiB are beyond what a sandbox can use.
	MaxRateKiBps = 4 << 20
	MaxTotalMiB  = 64 << 20

	maxName   = 253 // RFC 1035, without the dot at the end
	maxQuoted = 80  // bytes of a client's words in an error
)

// hostPorts are the ports of a rule for a host that names none: those whose
// connections say in their first bytes which host they are for.
var hostPorts = []uint16{80, 443}

// forbidden are the ranges that no sandbox reaches unless the operator allows it:
// what is not the public internet.
var forbidden = parseAll(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
	// Azure's host answers its machines there: their credentials are to be had.
	"168.63.129.16/32",
	// Of IPv6 only 2000::/3 is public, and of that neither what is set aside for
	// protocols nor what holds an IPv4 address.
	"::/3", "4000::/2", "8000::/1", "2001::/23", "2002::/16",
)

func parseAll(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

// Ranges are addresses that the operator lets sandboxes reach though they are not
// public.
type Ranges []netip.Prefix

// ParseRange returns the range of addresses that text names: one such as
// 203.0.113.0/24, without bits behind its length, or that of a single address.
// IPv4 is written as IPv4.
func ParseRange(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		addr, addrErr := netip.ParseAddr(text)
		if addrErr != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%s is no range of addresses; one is like \"203.0.113.0/24\"", quote(text))
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s is IPv4 written as IPv6; write it as IPv4", quote(text))
	}
	return p.Masked(), nil
}

// forbids tells whether a sandbox may never reach addr. An IPv4 address in the
// clothes of IPv6 is no address that anything is sent to, and a socket would take
// it for the other one.
func (r Ranges) forbids(addr netip.Addr) bool {
	if !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() {
		return true
	}
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	return slices.ContainsFunc(forbidden, contains) && !slices.ContainsFunc(r, contains)
}

// overlap returns a range of forbidden addresses that p asks for.
func (r Ranges) overlap(p netip.Prefix) (netip.Prefix, bool) {
	for _, f := range forbidden {
		if !f.Overlaps(p) {
			continue
		}
		common := f
		if p.Bits() > f.Bits() {
			common = p
		}
		if !r.cover(common) {
			return f, true
		}
	}
	return netip.Prefix{}, false
}

// cover tells whether every address of p is in some range.
func (r Ranges) cover(p netip.Prefix) bool {
	inside := false
	for _, ok := range r {
		if ok.Bits() <= p.Bits() && ok.Contains(p.Addr()) {
			return true
		}
		inside = inside || ok.Overlaps(p)
	}
	if !inside {
		return false
	}
	lower, upper := halves(p)
	return r.cover(lower) && r.cover(upper)
}

// halves returns the two halves of a range of more than one address.
func halves(p netip.Prefix) (lower, upper netip.Prefix) {
	bits := p.Bits() + 1
	raw := p.Addr().AsSlice()
	raw[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	middle, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(p.Addr(), bits), netip.PrefixFrom(middle, bits)
}

// Resolve returns the policy that asked means, in the one form in which it is
// kept, compared and enforced: names in lower case and ASCII without a dot at the
// end, ranges without host bits, ports in order, and nothing left to a default.
// The limits in defaults are those of a policy that asks for none, and the most
// that one can ask for. An error is a [sandbox.Error] that names the rule by its
// place.
func (r Ranges) Resolve(asked, defaults sandbox.Egress) (sandbox.Egress, error) {
	if len(asked.Allow) > MaxRules {
		return sandbox.Egress{}, sandbox.Invalid("egress has %d rules; it can have %d at most", len(asked.Allow), MaxRules)
	}
	got := sandbox.Egress{Allow: make([]sandbox.EgressRule, 0, len(asked.Allow))}
	for i, rule := range asked.Allow {
		rule, why := r.rule(rule)
		if why != "" {
			return sandbox.Egress{}, sandbox.Invalid("egress: rule %d: %s", i+1, why)
		}
		if !slices.ContainsFunc(got.Allow, func(o sandbox.EgressRule) bool { return equal(o, rule) }) {
			got.Allow = append(got.Allow, rule)
		}
	}
	var err error
	if got.RateKiBps, err = limit("rate_kib_s", asked.RateKiBps, defaults.RateKiBps, MaxRateKiBps); err != nil {
		return sandbox.Egress{}, err
	}
	got.TotalMiB, err = limit("total_mib", asked.TotalMiB, defaults.TotalMiB, MaxTotalMiB)
	return got, err
}

func limit(name string, asked, def, most int) (int, error) {
	if def > 0 {
		most = min(most, def)
	}
	switch {
	case asked == 0:
		return def, nil
	case asked < 0 || asked > most:
		return 0, sandbox.Invalid("egress: %s is %d; it can be 1 to %d", name, asked, most)
	}
	return asked, nil
}

// CheckLimits returns an error if a policy cannot have the limits of e.
func CheckLimits(e sandbox.Egress) error {
	_, err := Ranges(nil).Resolve(e, sandbox.Egress{})
	return err
}

// rule returns a rule in its one form, or why there is none.
func (r Ranges) rule(asked sandbox.EgressRule) (rule sandbox.EgressRule, why string) {
	rule = asked
	switch {
	case asked.Host != "" && asked.CIDR.IsValid():
		return rule, "it has both host and cidr; give one"
	case asked.Host != "":
		if rule.Host, why = canonicalHost(asked.Host); why != "" {
			return rule, why
		}
	case asked.CIDR.Addr().Is4In6():
		return rule, quote(asked.CIDR.String()) + " is IPv4 written as IPv6; write it as IPv4"
	case asked.CIDR.IsValid():
		rule.CIDR = asked.CIDR.Masked()
		if f, is := r.overlap(rule.CIDR); is {
			return rule, rule.CIDR.String() + " has addresses of " + f.String() + ", which sandboxes may not reach unless emberd's --egress-ranges allows it"
		}
	default:
		return rule, "it has neither host nor cidr"
	}
	switch rule.Protocol {
	case "":
		rule.Protocol = sandbox.TCP
	case sandbox.TCP, sandbox.UDP:
	default:
		return rule, "protocol is " + quote(string(rule.Protocol)) + `; it can be "tcp" or "udp"`
	}
	if rule.Ports, why = canonicalPorts(asked.Ports); rule.Ports == nil && rule.Host != "" {
		rule.Ports = slices.Clone(hostPorts)
	}
	return rule, why
}

// canonicalPorts returns ports in order and each once, nil if there are none.
func canonicalPorts(asked []uint16) (ports []uint16, why string) {
	switch {
	case len(asked) == 0:
		return nil, ""
	case len(asked) > MaxPorts:
		return nil, fmt.Sprintf("it has %d ports; it can have %d at most", len(asked), MaxPorts)
	}
	ports = slices.Sorted(slices.Values(asked))
	if ports[0] == 0 {
		return nil, "port 0; ports go from 1 to 65535"
	}
	return slices.Compact(ports), ""
}

func equal(a, b sandbox.EgressRule) bool {
	return a.Host == b.Host && a.CIDR == b.CIDR && a.Protocol == b.Protocol && slices.Equal(a.Ports, b.Ports)
}

// wildcard begins a host that stands for all names below one.
const wildcard = "*."

// canonicalHost is [canonicalName] for the host of a rule.
func canonicalHost(host string) (_, why string) {
	rest, wild := strings.CutPrefix(host, wildcard)
	name, why := canonicalName(rest)
	switch {
	case why != "" && wild && rest == "":
		return "", quote(host) + notName
	case why != "":
		return "", why
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return "", quote(host) + " is the sandbox itself"
	}
	if wild {
		name = wildcard + name
	}
	return name, ""
}

// canonicalName returns the one form of a name: lower case, ASCII (IDNA), no dot
// at the end. Addresses are no names.
func canonicalName(name string) (_, why string) {
	if len(name) > 4*maxName {
		return "", "host is too long; 253 characters at most"
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return "", quote(name) + notCIDR
	}
	ascii, err := toASCII.ToASCII(strings.TrimSuffix(name, "."))
	// What is no UTF-8 has a form in ASCII all the same, which is another name's.
	if err != nil || !utf8.ValidString(name) || ascii == "" || len(ascii) > maxName || strings.HasSuffix(ascii, ".") {
		return "", quote(name) + notName
	}
	if numeric(ascii) {
		return "", quote(name) + notCIDR
	}
	return ascii, ""
}

// What a name is not.
const (
	notName = ` is no host name; one is like "api.example.org" or "*.example.org"`
	notCIDR = " is an address; use cidr"
)

// toASCII is strict, so that what is compared is what every resolver takes.
var toASCII = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true), idna.Transitional(false))

// numeric tells whether the last label of a name is a number, as in the old ways
// to write an address that some resolvers take.
func numeric(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == ""
}

// quote is s as an error has it.
func quote(s string) string {
	text := printable.Head(s, maxQuoted)
	if len(s) > maxQuoted {
		text += "…"
	}
	return `"` + text + `"`
}

// policy is a policy as it is asked about, in the form of [Ranges.Resolve].
type policy struct {
	sandbox.Egress
	ranges Ranges
	// exact has the rules for names, below those for all names below one, and
	// cidrs those for ranges.
	exact, below map[string][]sandbox.EgressRule
	cidrs        []sandbox.EgressRule
}

func newPolicy(e sandbox.Egress, ranges Ranges) *policy {
	p := &policy{Egress: e, ranges: ranges, exact: map[string][]sandbox.EgressRule{}, below: map[string][]sandbox.EgressRule{}}
	for _, rule := range e.Allow {
		apex, wild := strings.CutPrefix(rule.Host, wildcard)
		switch {
		case rule.Host == "":
			p.cidrs = append(p.cidrs, rule)
		case wild:
			p.below[apex] = append(p.below[apex], rule)
		default:
			p.exact[rule.Host] = append(p.exact[rule.Host], rule)
		}
	}
	return p
}

// rulesFor returns the rules that allow something of the host with that canonical
// name.
func (p *policy) rulesFor(name string) []sandbox.EgressRule {
	rules := slices.Clone(p.exact[name])
	for rest := name; ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			return rules
		}
		rules = append(rules, p.below[parent]...)
		rest = parent
	}
}

// allowsName tells whether the host with that canonical name may be reached on a
// port.
func (p *policy) allowsName(name string, proto sandbox.Protocol, port uint16) bool {
	return slices.ContainsFunc(p.rulesFor(name), func(r sandbox.EgressRule) bool { return covers(r, proto, port) })
}

// allowsAddr tells whether a rule for a range allows an address and port.
func (p *policy) allowsAddr(addr netip.Addr, proto sandbox.Protocol, port uint16) bool {
	return !p.ranges.forbids(addr) && slices.ContainsFunc(p.cidrs, func(r sandbox.EgressRule) bool {
		return r.CIDR.Contains(addr) && covers(r, proto, port)
	})
}

func covers(r sandbox.EgressRule, proto sandbox.Protocol, port uint16) bool {
	return r.Protocol == proto && (len(r.Ports) == 0 || slices.Contains(r.Ports, port))
}
