package rest

import "time"

// MaxEgressBody is how long a policy may be as JSON, in bytes.
const MaxEgressBody = 256 << 10

// EgressRequest is what a sandbox is to be allowed to reach, which is nothing but
// what a rule allows.
type EgressRequest struct {
	Allow     []EgressRuleRequest `json:"allow" nullable:"false" maxItems:"1000" doc:"What may be reached. None is allowed, too: then the sandbox has a network interface and reaches nothing."`
	RateKiBps int                 `json:"rate_kib_s,omitempty" minimum:"0" example:"10240" doc:"How much may go through in each direction, in KiB a second. Absent or 0 asks for the daemon's limit, which is the most there is."`
	TotalMiB  int                 `json:"total_mib,omitempty" minimum:"0" example:"1024" doc:"How much may go through in both directions together, in MiB, as long as the sandbox lives. Absent or 0 asks for the daemon's limit, which is the most there is."`
}

// EgressRuleRequest allows connections to a host or to a range of addresses.
type EgressRuleRequest struct {
	Host     string `json:"host,omitempty" example:"api.example.org" doc:"A name, or *. and a name for all names below that one, but not itself. Give this or cidr."`
	CIDR     string `json:"cidr,omitempty" doc:"A range of addresses, as 203.0.113.0/24 is one, or one address. Private and reserved ones are refused, unless the daemon's operator allows them."`
	Ports    []int  `json:"ports,omitempty" nullable:"false" maxItems:"32" minimum:"1" maximum:"65535" example:"[443]" doc:"Ports of the destination. Absent means 80 and 443 of a host, and all of a range."`
	Protocol string `json:"protocol,omitempty" enum:"tcp,udp" example:"tcp" doc:"Absent means tcp."`
}

// Egress is what a sandbox may reach, in the one form in which it is enforced: names
// in ASCII and lower case, nothing left to a default.
type Egress struct {
	Allow     []EgressRule `json:"allow" nullable:"false" doc:"What may be reached, and nothing else."`
	RateKiBps int          `json:"rate_kib_s,omitempty" example:"10240" doc:"How much may go through in each direction, in KiB a second."`
	TotalMiB  int          `json:"total_mib,omitempty" example:"1024" doc:"How much may go through in both directions together, in MiB, as long as the sandbox lives."`
}

// EgressRule allows connections to a host or to a range of addresses.
type EgressRule struct {
	Host     string `json:"host,omitempty" example:"api.example.org" doc:"A name, or *. and a name for all names below that one."`
	CIDR     string `json:"cidr,omitempty" example:"203.0.113.0/24" doc:"A range of addresses."`
	Ports    []int  `json:"ports,omitempty" nullable:"false" example:"[443]" doc:"Ports of the destination; absent means all."`
	Protocol string `json:"protocol,omitempty" enum:"tcp,udp" example:"tcp"`
}

// EgressDenial is something that a sandbox wanted to reach and may not.
type EgressDenial struct {
	Host     string      `json:"host,omitempty" example:"pypi.org" doc:"The name that was asked for, as far as it is known."`
	Addr     string      `json:"addr,omitempty" example:"203.0.113.7" doc:"The address. Absent where a name was not resolved."`
	Port     int         `json:"port,omitempty" example:"443" doc:"The port of the destination. Absent where there is none."`
	Protocol string      `json:"protocol" example:"tcp" doc:"tcp, udp, icmp or the number of another protocol; dns for a name that was not resolved."`
	Reason   string      `json:"reason" example:"no_rule" doc:"no_rule: no rule allows it. forbidden_address: a private or reserved address, or the host's own, which no rule opens. name_not_allowed: the address is allowed for another name than the one that the connection's first bytes have. no_name: they have none, or hide it. unresolved: none of the resolvers answered for the name. limit: a limit of the policy."`
	Rule     *EgressRule `json:"rule,omitempty" doc:"The rule that would have allowed it. Absent if none can."`
	Count    int64       `json:"count" example:"2" doc:"How often."`
	Last     time.Time   `json:"last,omitzero" doc:"When it was refused last, as far as that is known."`
}

// EgressDenialList is what was refused to a sandbox so far.
type EgressDenialList struct {
	Denials []EgressDenial `json:"denials" nullable:"false"`
}
