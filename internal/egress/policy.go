package egress

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"

	"github.com/emberd/emberd/internal/sandbox"
)

// Limits of a policy.
const (
	MaxRules = 1000
	MaxPorts = 32 // of one rule
	// MaxRateKiBps and MaxTotalMiB are beyond what a sandbox can use.
	MaxRateKiBps = 4 << 20
	MaxTotalMiB  = 64 << 20

	maxName = 253 // RFC 1035, without the dot at the end
)

// hostPorts are the ports of a rule for a host that names none: those whose
// connections say in their first bytes which host they are for.
var hostPorts = []uint16{80, 443}

// forbidden are the ranges that no sandbox reaches unless the operator allows it:
// what is not the public internet.
var forbidden = parseAll(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
	// Of IPv6 only 2000::/3 is public, and of that not what holds an IPv4 address.
	"::/3", "4000::/2", "8000::/1", "2001::/32", "2002::/16",
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

// forbids tells whether a sandbox may never reach addr.
func (r Ranges) forbids(addr netip.Addr) bool {
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	return addr.Zone() != "" || slices.ContainsFunc(forbidden, contains) && !slices.ContainsFunc(r, contains)
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
		if !slices.ContainsFunc(r, func(ok netip.Prefix) bool { return ok.Bits() <= common.Bits() && ok.Contains(common.Addr()) }) {
			return f, true
		}
	}
	return netip.Prefix{}, false
}

// Resolve returns the policy that asked means, in the one form in which it is
// kept, compared and enforced: names in lower case and ASCII without a dot at the
// end, ranges without host bits, ports in order, and nothing left to a default. An
// error is a [sandbox.Error] that names the rule by its place.
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
	switch {
	case asked == 0:
		return def, nil
	case asked < 0 || asked > most:
		return 0, sandbox.Invalid("egress: %s is %d; it can be 1 to %d", name, asked, most)
	}
	return asked, nil
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
	if len(asked.Ports) > MaxPorts {
		return rule, "it has too many ports; 32 at most"
	}
	rule.Ports = slices.Clone(asked.Ports)
	slices.Sort(rule.Ports)
	rule.Ports = slices.Compact(rule.Ports)
	switch {
	case len(rule.Ports) > 0 && rule.Ports[0] == 0:
		return rule, "port 0; ports go from 1 to 65535"
	case len(rule.Ports) == 0 && rule.Host != "":
		rule.Ports = slices.Clone(hostPorts)
	}
	return rule, ""
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
	if why != "" {
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
	ascii, err := toASCII.ToASCII(strings.TrimSuffix(name, "."))
	if err != nil || ascii == "" || len(ascii) > maxName || strings.HasSuffix(ascii, ".") {
		return "", quote(name) + ` is no host name; one is like "api.example.org" or "*.example.org"`
	}
	if _, err := netip.ParseAddr(ascii); err == nil || numeric(ascii) {
		return "", quote(name) + " is an address; use cidr"
	}
	return ascii, ""
}

// toASCII is strict, so that what is compared is what every resolver takes.
var toASCII = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true), idna.Transitional(false))

// numeric tells whether the last label of a name is a number, as in the old ways
// to write an address that some resolvers take.
func numeric(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == ""
}

func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return `"` + strings.ToValidUTF8(s, "\uFFFD") + `"`
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
