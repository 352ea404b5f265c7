package real

import (
	"fmt"
	"maps"
	"strings"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/testenv/internet"
)

// op is one thing that a program tries: a function of testdata/egress.py and its
// arguments.
type op struct {
	name string
	args args
	// heard is the name that a TLS server has to have heard, and where, if the
	// outcome alone does not show that it did.
	heard string
}

type args = map[string]any

func newOp(name string, all ...args) op { return op{name: name, args: merge(all...)} }

func dnsOp(name string, more ...args) op {
	return newOp("dns", append([]args{{"name": name}}, more...)...)
}
func lookupOp(name string) op           { return newOp("lookup", args{"name": name}) }
func tcpOp(host string, port int) op    { return newOp("tcp", args{"host": host, "port": port}) }
func udpOp(host string, port int) op    { return newOp("udp", args{"host": host, "port": port}) }
func bareOp(addr string, port int) op   { return newOp("bare", args{"address": addr, "port": port}) }
func protoOp(addr string, proto int) op { return newOp("bare", args{"address": addr, "number": proto}) }
func httpsOp(host string, more ...args) op {
	return newOp("https", append([]args{{"host": host}}, more...)...)
}
func helloOp(host, change string, more ...args) op {
	return httpsOp(host, append(more, args{"change": change})...)
}
func plainOp(host string, say string) op {
	return newOp("plain", args{"host": host, "say": fmt.Sprintf("%x", say)})
}

// webOp sends requests on one connection to port 80. Each is a request line and
// headers, without what ends them.
func webOp(host string, requests ...string) op {
	var all []string
	for _, r := range requests {
		head, body, _ := strings.Cut(r, "\n\n")
		all = append(all, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"+strings.ReplaceAll(body, "\n", "\r\n"))
	}
	return newOp("web", args{"host": host, "requests": all})
}

func get(host string) string { return "GET /page HTTP/1.1\nHost: " + host }

func merge(all ...args) args {
	m := args{}
	for _, a := range all {
		maps.Copy(m, a)
	}
	return m
}

// trial is something that works, and how it is kept from working: as bad, which the
// same policy refuses, or if there is no bad, by a policy that allows nothing.
type trial struct {
	name string
	good op
	// want is a regular expression for the outcome of good, fails for that of bad.
	want  string
	bad   op
	fails string
	// denied is what is said of bad, as "reason protocol host address:port"; parts
	// that are "*" may be anything.
	denied string
}

// The rules that the trials are made under. Each name has addresses of its own, but
// for those that are about sharing one.
const trialRules = `[
	{"host": "api.example.org"},
	{"host": "*.example.com"},
	{"host": "Bücher.example"},
	{"host": "UPPER.Example.NET."},
	{"host": "db.example.org", "ports": [5432]},
	{"host": "many-ports.example.org", "ports": [22, 25, 6379]},
	{"host": "udp.example.org", "ports": [9000, 4500], "protocol": "udp"},
	{"host": "web.example.org", "ports": [80]},
	{"host": "secure.example.org", "ports": [443]},
	{"host": "other-web.example.org", "ports": [8080, 8443]},
	{"host": "shared.example.org"},
	{"host": "also-shared.example.org"},
	{"host": "chain.example.org"}, {"host": "loop.example.org"}, {"host": "dangling.example.org"},
	{"host": "ttl0.example.org"},
	{"host": "many.example.org"},
	{"host": "rebind.example.org", "ports": [80, 9000]},
	{"host": "moving.example.org", "ports": [9000]},
	{"host": "mixed.example.org"}, {"host": "order.example.org"},
	{"host": "private.example.org"}, {"host": "metadata.google.internal"}, {"host": "lo.example.org"}, {"host": "mapped.example.org"},
	{"host": "here.example.org", "ports": [80, 443, 9000]},
	{"host": "cut.example.org"}, {"host": "silent.example.org"}, {"host": "none.example.org"}, {"host": "broken.example.org"},
	{"host": "liar.example.org"}, {"host": "wrong-id.example.org"}, {"host": "stray.example.org"},
	{"host": "six.example.org"},
	{"host": "doh.example.org"}, {"host": "dot.example.org", "ports": [853]},
	{"host": "ws.example.org", "ports": [80]},
	{"cidr": "198.51.100.0/28", "ports": [5432, 9000]},
	{"cidr": "198.51.100.16/28", "ports": [4500], "protocol": "udp"},
	{"cidr": "198.51.100.32/32"},
	{"cidr": "192.0.2.0/30"}
]`

// trialScripts says what the names of the trials resolve to. Those of *.evil.test
// and a few more are not allowed, and exist.
func trialScripts() map[string]internet.Script {
	scripts := map[string]internet.Script{
		"rebind.example.org": turns("rebind.example.org. 0 IN A 203.0.113.34", "rebind.example.org. 0 IN A 10.66.0.1"),
		"moving.example.org": turns("moving.example.org. 0 IN A 203.0.113.35", "moving.example.org. 0 IN A 203.0.113.36"),
		"cut.example.org": func(q internet.Question) internet.Answer {
			a := internet.Records("cut.example.org. 60 IN A 203.0.113.37")(q)
			a.Truncated = true
			return a
		},
		"silent.example.org": func(internet.Question) internet.Answer { return internet.Answer{Silent: true} },
		"broken.example.org": func(internet.Question) internet.Answer { return internet.Answer{Code: dns.RcodeServerFailure} },
		"liar.example.org": func(internet.Question) internet.Answer {
			return internet.Answer{Records: []string{"www.evil.test. 60 IN A 203.0.113.38"}, Name: "www.evil.test"}
		},
		"wrong-id.example.org": func(q internet.Question) internet.Answer {
			a := internet.Records("wrong-id.example.org. 60 IN A 203.0.113.39")(q)
			a.ID = 1
			return a
		},
	}
	for name, addr := range map[string]string{
		"api.example.org": "203.0.113.10", "a.example.com": "203.0.113.11", "deep.b.example.com": "203.0.113.12", "example.com": "203.0.113.13",
		"xn--bcher-kva.example": "203.0.113.14", "upper.example.net": "203.0.113.15", "db.example.org": "203.0.113.16",
		"udp.example.org": "203.0.113.17", "web.example.org": "203.0.113.24", "secure.example.org": "203.0.113.25",
		"other-web.example.org": "203.0.113.26", "many-ports.example.org": "203.0.113.27", "ws.example.org": "203.0.113.28",
		"shared.example.org": "203.0.113.20", "also-shared.example.org": "203.0.113.20", "sneaky.evil.test": "203.0.113.20",
		"doh.example.org": "203.0.113.21", "dot.example.org": "203.0.113.22", "doh.evil.test": "203.0.113.221", "dot.evil.test": "203.0.113.222",
		"www.evil.test": "203.0.113.200", "notexample.com": "203.0.113.201", "a.example.com.evil.test": "203.0.113.202", "example.org": "203.0.113.203",
		"private.example.org": "10.66.0.1", "metadata.google.internal": "169.254.169.254", "lo.example.org": "127.0.0.1",
		"here.example.org": internet.Here.String(), "edge.cdn.test": "203.0.113.18",
	} {
		scripts[name] = internet.Addresses(name, addr)
	}
	for name, records := range map[string][]string{
		"chain.example.org": {
			"chain.example.org. 60 IN CNAME one.cdn.test.", "one.cdn.test. 60 IN CNAME two.cdn.test.", "two.cdn.test. 5 IN CNAME edge.cdn.test.",
			"edge.cdn.test. 60 IN A 203.0.113.18",
		},
		"loop.example.org":     {"loop.example.org. 60 IN CNAME pool.cdn.test.", "pool.cdn.test. 60 IN CNAME loop.example.org."},
		"dangling.example.org": {"dangling.example.org. 60 IN CNAME gone.cdn.test."},
		"ttl0.example.org":     {"ttl0.example.org. 0 IN A 203.0.113.19"},
		"mixed.example.org":    {"mixed.example.org. 60 IN A 203.0.113.29", "mixed.example.org. 60 IN A 10.66.0.1", "mixed.example.org. 60 IN A 169.254.169.254"},
		"order.example.org":    {"order.example.org. 60 IN A 10.66.0.1", "order.example.org. 60 IN A 192.168.0.1", "order.example.org. 60 IN A 203.0.113.30"},
		"mapped.example.org":   {"mapped.example.org. 60 IN AAAA ::ffff:203.0.113.31", "mapped.example.org. 60 IN AAAA ::ffff:10.66.0.1"},
		"six.example.org":      {"six.example.org. 60 IN A 203.0.113.32", "six.example.org. 60 IN AAAA 2001:db8::32"},
		"stray.example.org":    {"stray.example.org. 60 IN A 203.0.113.33", "other.evil.test. 60 IN A 203.0.113.233"},
	} {
		scripts[name] = internet.Records(records...)
	}
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("203.0.113.%d", 100+i))
	}
	scripts["many.example.org"] = internet.Addresses("many.example.org", many...)
	return scripts
}

// turns answers with one record after the other, and with the last from then on.
func turns(records ...string) internet.Script {
	return func(q internet.Question) internet.Answer {
		return internet.Records(records[min(q.Time, len(records))-1])(q)
	}
}

// echPayload is longer than what a hello without it has.
const echPayload = 300

// What the trials begin with: outcomes of those that were refused, in the kernel,
// by the relay, and by the resolver.
const (
	isRefused = `^(refused|unreachable)$`
	isCut     = `^(reset|closed|tls .*)$`
	isUnnamed = `^ok REFUSED $`
)

func trials() []trial {
	var all []trial
	for _, some := range [][]trial{nameTrials, answerTrials, addressTrials, protocolTrials, tlsTrials, httpTrials, dnsTrials} {
		all = append(all, some...)
	}
	return all
}

// at has a request go to another port.
func (o op) at(port int) op { return newOp(o.name, o.args, args{"port": port}) }

// heardAt has an op succeed if a server heard the name there. The server will not
// like what the client was made to say.
func (o op) heardAt(name, at string) op {
	o.heard = name + " " + at
	return o
}
