package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/emberd/emberd/internal/sandbox"
)

// Limits of what a guest asks.
const (
	maxQuery         = 1024 // bytes; a question for a name has 300 at most
	maxLookups       = 64   // that wait for the host's resolvers
	queriesPerSecond = 200
	queriesBurst     = 400
	maxDNSConns      = 16
	dnsIdle          = 10 * time.Second

	// A name is resolved for as long as its answer says, within bounds, and the
	// grace that a guest needs to use it.
	minTTL, maxTTL = 5 * time.Second, time.Hour
	ttlGrace       = 10 * time.Second

	maxAddrs    = 32   // of one answer
	maxResolved = 4096 // addresses of names that are remembered
)

// resolver answers a guest's questions about the names of its policy, and knows
// which names were resolved to which addresses. Nobody but it opens an address in
// the kernel.
type resolver struct {
	*userConfig
	slots   chan struct{}
	conns   chan struct{}
	queries *rate.Limiter
	running sync.WaitGroup // lookups of serveUDP and connections of serveTCP

	// mu is held while addresses are opened, so that set can wait for those that
	// an older policy allowed.
	mu     sync.RWMutex
	policy *policy

	tableMu  sync.Mutex
	table    map[netip.Addr]map[string]time.Time // until when a name is at an address
	resolved int
}

func newResolver(cfg *userConfig) *resolver {
	return &resolver{
		userConfig: cfg,
		slots:      make(chan struct{}, maxLookups),
		conns:      make(chan struct{}, maxDNSConns),
		queries:    rate.NewLimiter(queriesPerSecond, queriesBurst),
		policy:     cfg.policy,
		table:      map[netip.Addr]map[string]time.Time{},
	}
}

func (r *resolver) set(p *policy) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.policy = p
}

func (r *resolver) now() *policy {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.policy
}

// deny writes down that a name was not resolved.
func (r *resolver) deny(name string, reason sandbox.EgressReason, addr netip.Addr, rule *sandbox.EgressRule) {
	r.book.deny(sandbox.EgressDenial{Host: name, Addr: addr, Protocol: sandbox.DNS, Reason: reason, Rule: rule})
}

// serveUDP answers messages until the socket is closed.
func (r *resolver) serveUDP(ctx context.Context, c net.PacketConn) {
	buf := make([]byte, maxQuery)
	for {
		n, from, err := c.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed) || err != nil && !pause(ctx):
			return
		case err != nil:
			continue
		}
		if !r.queries.Allow() {
			r.deny("", sandbox.DeniedLimit, netip.Addr{}, nil)
			continue
		}
		q, reply := r.read(buf[:n])
		if reply != nil || q == nil {
			r.write(c, from, reply, q)
			continue
		}
		if !r.take() {
			r.write(c, from, failed(q), q)
			continue
		}
		r.running.Go(func() {
			defer r.free()
			r.write(c, from, r.answer(ctx, q), q)
		})
	}
}

// write sends a reply as a datagram, cut to what the guest takes.
func (r *resolver) write(c net.PacketConn, to net.Addr, reply, q *dns.Msg) {
	if reply == nil {
		return
	}
	size := dns.MinMsgSize
	if q != nil {
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, min(int(opt.UDPSize()), ednsSize))
		}
	}
	reply.Truncate(size)
	if b, err := reply.Pack(); err == nil {
		_, _ = c.WriteTo(b, to)
	}
}

// serveTCP answers on connections until the listener is closed.
func (r *resolver) serveTCP(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || err != nil && !pause(ctx):
			return
		case err != nil:
			continue
		}
		select {
		case r.conns <- struct{}{}:
			r.running.Go(func() {
				defer func() { <-r.conns }()
				r.serveConn(ctx, conn)
			})
		default:
			r.deny("", sandbox.DeniedLimit, netip.Addr{}, nil)
			reset(conn)
		}
	}
}

// serveConn answers the messages on one connection, one after the other.
func (r *resolver) serveConn(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for r.queries.Wait(ctx) == nil {
		_ = conn.SetDeadline(time.Now().Add(dnsIdle))
		b, err := readFramed(conn, maxQuery)
		if err != nil {
			return
		}
		q, reply := r.read(b)
		switch {
		case reply != nil:
		case q == nil:
			return
		case !r.take():
			reply = failed(q)
		default:
			reply = r.answer(ctx, q)
			r.free()
		}
		_ = conn.SetDeadline(time.Now().Add(dnsIdle))
		if writeFramed(conn, reply) != nil {
			return
		}
	}
}

// take takes a place among the lookups; free gives it back.
func (r *resolver) take() bool {
	select {
	case r.slots <- struct{}{}:
		return true
	default:
		r.deny("", sandbox.DeniedLimit, netip.Addr{}, nil)
		return false
	}
}

func (r *resolver) free() { <-r.slots }

// read takes a guest's message apart. It comes with a reply if nobody has to be
// asked, and is nil if it is not worth one.
func (r *resolver) read(b []byte) (q, reply *dns.Msg) {
	q, rcode := parseQuestion(b)
	if q == nil {
		return nil, nil
	}
	reply = replyTo(q, rcode)
	if rcode != dns.RcodeSuccess {
		return q, reply
	}
	question := q.Question[0]
	raw := strings.TrimSuffix(question.Name, ".")
	name, ok := guestName(raw)
	if !ok || len(r.now().rulesFor(name)) == 0 {
		var rule *sandbox.EgressRule
		if ok && (question.Qtype == dns.TypeA || question.Qtype == dns.TypeAAAA) {
			rule = hostRule(name, sandbox.TCP, hostPorts...)
		}
		r.deny(strings.ToLower(raw), sandbox.DeniedNoRule, netip.Addr{}, rule)
		reply.Rcode = dns.RcodeRefused
		return q, reply
	}
	if !r.answers(question.Qtype) {
		return q, reply // that there is nothing of that type
	}
	return q, nil
}

// answers tells whether a type is asked for upstream.
func (r *resolver) answers(qtype uint16) bool {
	return qtype == dns.TypeA || qtype == dns.TypeAAAA && r.ipv6
}

// parseQuestion decodes a message that asks one question. It is nil if no reply
// is due; a code other than success says what is wrong with it.
func parseQuestion(b []byte) (q *dns.Msg, rcode int) {
	const header = 12
	if len(b) < header || b[2]&0x80 != 0 {
		return nil, 0 // no message, or a reply
	}
	q = new(dns.Msg)
	if opcode := int(b[2]>>3) & 0xF; opcode != dns.OpcodeQuery {
		q.Id, q.Opcode = binary.BigEndian.Uint16(b), opcode
		return q, dns.RcodeNotImplemented
	}
	// Counts of what may be large are looked at before anything is decoded.
	count := func(i int) uint16 { return binary.BigEndian.Uint16(b[i:]) }
	if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 || q.Unpack(b) != nil || len(q.Question) != 1 {
		*q = dns.Msg{MsgHdr: dns.MsgHdr{Id: count(0)}}
		return q, dns.RcodeFormatError
	}
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		return q, dns.RcodeBadVers
	}
	if q.Question[0].Qclass != dns.ClassINET {
		return q, dns.RcodeRefused
	}
	return q, dns.RcodeSuccess
}

// replyTo returns an empty reply.
func replyTo(q *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, rcode)
	m.Opcode, m.RecursionAvailable, m.Compress = q.Opcode, true, true
	if q.IsEdns0() != nil {
		m.SetEdns0(ednsSize, false)
	}
	return m
}

func failed(q *dns.Msg) *dns.Msg { return replyTo(q, dns.RcodeServerFailure) }

// answer answers a question that read let through, by asking upstream.
func (r *resolver) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	name, _ := guestName(strings.TrimSuffix(question.Name, "."))
	got := r.lookup(ctx, name, question.Qtype)
	reply := replyTo(q, got.rcode)
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: uint32(got.ttl / time.Second)}
	for _, addr := range got.addrs {
		if question.Qtype == dns.TypeA {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
		} else {
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	return reply
}

// answer is what is known of a name.
type answer struct {
	rcode int
	addrs []netip.Addr
	ttl   time.Duration
}

// lookup resolves a name of the policy, and opens the addresses that it returns.
func (r *resolver) lookup(ctx context.Context, name string, qtype uint16) answer {
	got, err := r.ask(ctx, name, qtype)
	if err != nil {
		if ctx.Err() == nil {
			r.deny(name, sandbox.DeniedUnresolved, netip.Addr{}, nil)
		}
		return answer{rcode: dns.RcodeServerFailure}
	}
	found := len(got.addrs)
	got.addrs = slices.DeleteFunc(got.addrs, func(addr netip.Addr) bool {
		if !r.forbidden(r.now(), addr) {
			return false
		}
		r.deny(name, sandbox.DeniedRange, addr, nil)
		return true
	})
	got.ttl = min(max(got.ttl, minTTL), maxTTL)
	if got.addrs = r.opened(name, got.addrs, got.ttl+ttlGrace); len(got.addrs) == 0 && found > 0 {
		got.rcode = dns.RcodeServerFailure
	}
	return got
}

// opened opens addresses of a name, and returns those that it could open.
func (r *resolver) opened(name string, addrs []netip.Addr, ttl time.Duration) []netip.Addr {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rules := r.policy.rulesFor(name)
	if len(rules) == 0 {
		return nil // not any more
	}
	until := time.Now().Add(ttl)
	return slices.DeleteFunc(addrs, func(addr netip.Addr) bool {
		if err := r.open.open(addr, rules, ttl); err != nil {
			r.log.Warn("a resolved address could not be opened", "err", err)
			return true
		}
		r.remember(name, addr, until)
		return false
	})
}

func (r *resolver) remember(name string, addr netip.Addr, until time.Time) {
	r.tableMu.Lock()
	defer r.tableMu.Unlock()
	if r.resolved >= maxResolved {
		r.prune()
	}
	names := r.table[addr]
	if names == nil {
		names = map[string]time.Time{}
		r.table[addr] = names
	}
	if _, known := names[name]; !known {
		r.resolved++
	}
	names[name] = until
}

// prune forgets what is over, and some of the rest if that is not enough: a
// connection by name has it resolved again.
func (r *resolver) prune() {
	now := time.Now()
	forget := func(over func(until time.Time) bool) {
		for addr, names := range r.table {
			for name, until := range names {
				if over(until) {
					delete(names, name)
					r.resolved--
				}
			}
			if len(names) == 0 {
				delete(r.table, addr)
			}
		}
	}
	forget(func(until time.Time) bool { return until.Before(now) })
	forget(func(time.Time) bool { return r.resolved > maxResolved*3/4 })
}

// isAt tells whether a name of the policy is at an address, and has it resolved if
// that is not known, as it is after a restart.
func (r *resolver) isAt(ctx context.Context, name string, addr netip.Addr) bool {
	if r.knows(name, addr) {
		return true
	}
	if !r.queries.Allow() || !r.take() {
		return false
	}
	defer r.free()
	qtype := dns.TypeA
	if addr.Is6() {
		qtype = dns.TypeAAAA
	}
	r.lookup(ctx, name, qtype)
	return r.knows(name, addr)
}

func (r *resolver) knows(name string, addr netip.Addr) bool {
	r.tableMu.Lock()
	defer r.tableMu.Unlock()
	return r.table[addr][name].After(time.Now())
}

// maxAsked bounds for how many names it is asked whether they are at an address.
const maxAsked = 8

// namesAt returns the names of the policy that are at an address and may be
// reached there at that port.
func (r *resolver) namesAt(ctx context.Context, to netip.AddrPort, proto sandbox.Protocol) []string {
	p := r.now()
	names := r.known(to.Addr(), func(name string) bool { return p.allowsName(name, proto, to.Port()) })
	if len(names) > 0 {
		return names
	}
	asked := 0
	for _, rule := range p.Allow {
		if p.exact[rule.Host] == nil || !covers(rule, proto, to.Port()) {
			continue
		}
		if r.isAt(ctx, rule.Host, to.Addr()) {
			return []string{rule.Host}
		}
		if asked++; asked == maxAsked {
			break
		}
	}
	return nil
}

// known returns the names that are at an address and wanted, in order.
func (r *resolver) known(addr netip.Addr, wanted func(name string) bool) (names []string) {
	r.tableMu.Lock()
	defer r.tableMu.Unlock()
	now := time.Now()
	for name, until := range r.table[addr] {
		if until.After(now) && wanted(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// hostAt returns a name that is at an address.
func (r *resolver) hostAt(addr netip.Addr) string {
	names := r.known(addr, func(string) bool { return true })
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// readFramed reads a message as it comes on a connection.
func readFramed(c io.Reader, limit int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > limit {
		return nil, errLong
	}
	b := make([]byte, n)
	_, err := io.ReadFull(c, b)
	return b, err
}

var errLong = errors.New("the DNS message is too long")

func writeFramed(c io.Writer, m *dns.Msg) error {
	b, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}
