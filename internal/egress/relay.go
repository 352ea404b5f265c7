package egress

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/emberd/emberd/internal/sandbox"
)

// Limits of what a guest keeps open.
const (
	maxTCP = 256
	maxUDP = 256
	// acceptsPerSecond is the rate at which connections are taken; more wait in
	// the kernel's queue.
	acceptsPerSecond = 200
	acceptsBurst     = 256

	dialTimeout = 10 * time.Second
	// firstBytes is how long a connection may take to say which host it is for.
	firstBytes = 10 * time.Second
)

// chunk is what is read and written at once, so that a slow rate is even.
const chunk = 32 << 10

// relay connects on a guest's behalf. What it takes in was let through by the
// kernel; it decides each connection again, by the policy of that moment and, at
// ports 80 and 443, by the name in its first bytes.
type relay struct {
	*userConfig
	names    *resolver
	accepts  *rate.Limiter
	up, down *rate.Limiter // bytes from and to the guest
	web      *web
	running  sync.WaitGroup

	mu     sync.Mutex
	policy *policy
	flows  map[*flow]struct{}
	open   map[sandbox.Protocol]int
	closed bool
}

// flow is one connection, or the datagrams between one pair of addresses.
type flow struct {
	proto sandbox.Protocol
	to    netip.AddrPort
	ctx   context.Context
	cut   context.CancelFunc

	// Under the relay's lock.
	admitted bool
	name     string // that admitted it; "" if a range did
}

// allowedBy tells whether p lets the flow go on as it was admitted.
func (f *flow) allowedBy(p *policy, name string) bool {
	return p.allowsAddr(f.to.Addr(), f.proto, f.to.Port()) ||
		name != "" && !p.ranges.forbids(f.to.Addr()) && p.allowsName(name, f.proto, f.to.Port())
}

func newRelay(ctx context.Context, cfg *userConfig, names *resolver) *relay {
	r := &relay{
		userConfig: cfg,
		names:      names,
		accepts:    rate.NewLimiter(acceptsPerSecond, acceptsBurst),
		up:         rate.NewLimiter(rate.Inf, chunk),
		down:       rate.NewLimiter(rate.Inf, chunk),
		flows:      map[*flow]struct{}{},
		open:       map[sandbox.Protocol]int{},
	}
	r.web = newWeb(ctx, r)
	r.set(cfg.policy)
	return r
}

// set makes p the policy and cuts what it does not allow.
func (r *relay) set(p *policy) {
	for _, l := range []*rate.Limiter{r.up, r.down} {
		if p.RateKiBps == 0 {
			l.SetLimit(rate.Inf)
			continue
		}
		bytes := p.RateKiBps << 10
		l.SetLimit(rate.Limit(bytes))
		l.SetBurst(max(chunk, bytes/20))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.policy = p
	for f := range r.flows {
		if f.admitted && !f.allowedBy(p, f.name) {
			r.deny(f, f.name, sandbox.DeniedNoRule)
			f.cut()
		}
	}
}

// close cuts everything, and lets nothing begin any more.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for f := range r.flows {
		f.cut()
	}
	r.web.close()
}

// begin counts a flow in, or denies it if there are too many. The caller ends it.
func (r *relay) begin(ctx context.Context, proto sandbox.Protocol, to netip.AddrPort, limit int) (*flow, bool) {
	f := &flow{proto: proto, to: to}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false
	}
	if r.open[proto] >= limit {
		r.deny(f, "", sandbox.DeniedLimit)
		return nil, false
	}
	f.ctx, f.cut = context.WithCancel(ctx)
	r.flows[f] = struct{}{}
	r.open[proto]++
	return f, true
}

func (r *relay) end(f *flow) {
	f.cut()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flows, f)
	r.open[f.proto]--
}

// admit lets a flow pass from now on, if the policy of this moment allows it; name
// is the host that it is for, or "". A flow that is admitted is cut as soon as it
// is not allowed any more.
func (r *relay) admit(f *flow, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !f.allowedBy(r.policy, name) {
		return false
	}
	f.admitted, f.name = true, name
	return true
}

// proved tells whether the flow was admitted for that name before, when it was at
// that address. It may be elsewhere by now, and the flow goes on.
func (r *relay) proved(f *flow, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f.admitted && f.name == name
}

// now returns the policy of this moment.
func (r *relay) now() *policy {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.policy
}

// forbids denies a flow to an address that is never reached.
func (r *relay) forbids(f *flow) bool {
	if !r.forbidden(r.now(), f.to.Addr()) {
		return false
	}
	r.deny(f, "", sandbox.DeniedRange)
	return true
}

// admitAddr admits a flow whose first bytes say nothing: by a range, or because
// its address is that of a name.
func (r *relay) admitAddr(f *flow) bool {
	for _, name := range r.names.namesAt(f.ctx, f.to, f.proto) {
		if r.admit(f, name) {
			return true
		}
	}
	r.deny(f, r.names.hostAt(f.to.Addr()), sandbox.DeniedNoRule)
	return false
}

// admitName admits a flow whose first bytes name a host, or denies it. Why is for
// the guest to read.
func (r *relay) admitName(f *flow, raw string) (why string) {
	if raw == "" {
		r.deny(f, "", sandbox.DeniedUnnamed)
		return "no host is named"
	}
	name, ok := guestName(raw)
	switch {
	case !ok:
		r.deny(f, raw, sandbox.DeniedName)
		return quote(raw) + " is no host name"
	case !r.now().allowsName(name, f.proto, f.to.Port()):
	case !r.proved(f, name) && !r.names.isAt(f.ctx, name, f.to.Addr()):
		// The rule that is missing is not one for this name, of which there is one.
		r.book.deny(sandbox.EgressDenial{
			Host: name, Addr: f.to.Addr(), Port: f.to.Port(), Protocol: f.proto,
			Reason: sandbox.DeniedName, Rule: addrRule(f.to, f.proto),
		})
		return quote(name) + " is not at " + f.to.Addr().String()
	case r.admit(f, name):
		return ""
	}
	r.deny(f, name, sandbox.DeniedName)
	return "no rule allows " + quote(name)
}

// deny writes down that a flow was refused, with the rule that it lacked.
func (r *relay) deny(f *flow, host string, reason sandbox.EgressReason) {
	d := sandbox.EgressDenial{Host: host, Addr: f.to.Addr(), Port: f.to.Port(), Protocol: f.proto, Reason: reason}
	switch reason {
	case sandbox.DeniedRange, sandbox.DeniedLimit:
	default:
		if host != "" {
			d.Rule = hostRule(host, f.proto, f.to.Port())
		}
		if d.Rule == nil {
			d.Rule = addrRule(f.to, f.proto)
		}
	}
	r.book.deny(d)
}

// connect connects to a flow's destination. The caller has it end with the flow.
func (r *relay) connect(f *flow, network string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	defer cancel()
	return r.dial(ctx, network, f.to)
}

// reset closes a connection such that its peer learns that it was broken off.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// addrPort returns the address of a socket.
func addrPort(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}
