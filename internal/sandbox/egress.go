package sandbox

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// Egress is what a sandbox may reach, which is nothing but what a rule allows. A
// sandbox without one has no network interface.
type Egress struct {
	Allow []EgressRule `json:"allow"`
	// RateKiBps bounds what goes through in each direction, in KiB a second, and
	// TotalMiB what goes through in both together for as long as the sandbox
	// lives. In a request a zero means that the daemon's default applies.
	RateKiBps int `json:"rate_kib_s,omitempty"`
	TotalMiB  int `json:"total_mib,omitempty"`
}

// EgressRule allows connections to a host or to a range of addresses: one of the
// two is set.
type EgressRule struct {
	// Host is a name, or "*." and a name for all names below that one.
	Host string `json:"host,omitempty"`
	// CIDR is a range of addresses.
	CIDR netip.Prefix `json:"cidr,omitzero"`
	// Ports are those of the destination. None means 80 and 443 of a host, and all
	// of a range.
	Ports []uint16 `json:"ports,omitempty"`
	// Protocol is TCP if a request does not say.
	Protocol Protocol `json:"protocol,omitempty"`
}

// Protocol is what connections are made with.
type Protocol string

// The protocols that a rule can allow. DNS stands, in a denial, for a name that
// was not resolved; ICMP and the number of another protocol for packets of those.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
	DNS Protocol = "dns"
)

// EgressReason is why something was refused.
type EgressReason string

// The reasons.
const (
	// DeniedNoRule is a destination that no rule allows.
	DeniedNoRule EgressReason = "no_rule"
	// DeniedRange is an address that is never reached, whatever the rules say:
	// private, reserved, or the host's own.
	DeniedRange EgressReason = "forbidden_address"
	// DeniedName is a connection to an allowed address whose first bytes do not
	// name a host that is allowed there.
	DeniedName EgressReason = "name_not_allowed"
	// DeniedUnnamed is one whose first bytes name no host, or hide it.
	DeniedUnnamed EgressReason = "no_name"
	// DeniedUnresolved is a name that a rule allows, and for which none of the host's
	// resolvers had an answer.
	DeniedUnresolved EgressReason = "unresolved"
	// DeniedLimit is one that a limit of the policy ended or kept out.
	DeniedLimit EgressReason = "limit"
)

// EgressDenial is what was refused, once or more often.
type EgressDenial struct {
	// Host is the name that was asked for, if it is known.
	Host string `json:"host,omitempty"`
	// Addr is the zero value where there was only a name.
	Addr netip.Addr `json:"addr,omitzero"`
	// Port is 0 where there is none.
	Port     uint16       `json:"port,omitempty"`
	Protocol Protocol     `json:"protocol"`
	Reason   EgressReason `json:"reason"`
	// Rule is what would have allowed it, nil if no rule can.
	Rule  *EgressRule `json:"rule,omitempty"`
	Count int64       `json:"count"`
	// Last is when it was refused last, as far as that is known.
	Last time.Time `json:"last,omitzero"`
}

// Key tells denials of different things apart.
func (d EgressDenial) Key() string {
	return fmt.Sprintf("%s|%s|%s|%d|%s", d.Reason, d.Protocol, cmp.Or(d.Host, "-"), d.Port, d.Addr)
}

// EgressDenialsSince returns what was refused after before was taken. What was
// refused less often than it had been was forgotten meanwhile, and is counted
// anew.
func EgressDenialsSince(before, now []EgressDenial) []EgressDenial {
	seen := make(map[string]int64, len(before))
	for _, d := range before {
		seen[d.Key()] = d.Count
	}
	var since []EgressDenial
	for _, d := range now {
		if known := seen[d.Key()]; known <= d.Count {
			d.Count -= known
		}
		if d.Count > 0 {
			since = append(since, d)
		}
	}
	return since
}
