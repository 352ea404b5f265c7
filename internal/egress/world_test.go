package egress

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

// world is a user on loopback, with an outside that the test makes. Destinations
// are not loopback's: the listener says of each connection where it was to go, and
// what is dialled there arrives at a server of the test.
type world struct {
	t      *testing.T
	user   *user
	book   *book
	opened *openings
	tcp    *fakeTCP
	dns    netip.AddrPort // where the guest asks
	udp    uint16         // the port of the relay's socket, on all of 127.0.0.0/8

	mu      sync.Mutex
	servers map[netip.AddrPort]string // by destination
	dialled []netip.AddrPort
	asked   []dns.Question
	answer  dns.HandlerFunc // of the host's resolver
	stalled bool            // what is dialled does not answer
}

// openings notes what is opened, as the kernel's sets do.
type openings struct {
	mu  sync.Mutex
	all []opening
	err error
}

type opening struct {
	addr  netip.Addr
	rules []sandbox.EgressRule
	ttl   time.Duration
}

func (o *openings) open(addr netip.Addr, rules []sandbox.EgressRule, ttl time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.all = append(o.all, opening{addr, rules, ttl})
	}
	return o.err
}

func (o *openings) list() []opening {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.all)
}

func (o *openings) addrs() (addrs []netip.Addr) {
	for _, a := range o.list() {
		addrs = append(addrs, a.addr)
	}
	return addrs
}

// fail has whatever is opened fail.
func (o *openings) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
}

// fakeTCP is a transparent listener: its connections say that their local address
// is where the guest wanted to go.
type fakeTCP struct {
	net.Listener

	mu sync.Mutex
	to chan netip.AddrPort
}

type fakeConn struct {
	*net.TCPConn
	to netip.AddrPort
}

func (c fakeConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.to) }

func (l *fakeTCP) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return fakeConn{conn.(*net.TCPConn), <-l.to}, nil
}

// newWorld starts a user with a policy that allows rules; it ends with the test.
func newWorld(t *testing.T, rules ...sandbox.EgressRule) *world {
	t.Helper()
	return newWorldOf(t, sandbox.Egress{Allow: rules}, nil, func(*userConfig) {})
}

// newWorldOf is newWorld with a whole policy, ranges of the operator, and what
// change makes of the rest.
func newWorldOf(t *testing.T, e sandbox.Egress, ranges Ranges, change func(*userConfig)) *world {
	t.Helper()
	w := &world{t: t, book: newBook(), opened: &openings{}, servers: map[netip.AddrPort]string{}}
	w.answer = zone{}.answer
	resolver := w.serveDNS()
	s := sockets{reply: replySocket}
	s.dnsTCP, s.dnsUDP = listenBoth(t)
	w.dns = addrPort(s.dnsUDP.LocalAddr())
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.tcp = &fakeTCP{Listener: l, to: make(chan netip.AddrPort, maxTCP*2)}
	s.tcp = []net.Listener{w.tcp}
	u := reusable(t, "0.0.0.0:0")
	w.udp = addrPort(u.LocalAddr()).Port()
	s.udp = []*net.UDPConn{u}
	cfg := userConfig{
		policy: policyOf(t, e, ranges), resolvers: []netip.AddrPort{resolver}, ipv6: true,
		open: w.opened, book: w.book, sockets: s, log: slog.New(slog.DiscardHandler),
		hostLocal: func(addr netip.Addr) bool { return addr == hostAddr },
		dial: func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			if to == resolver {
				return (&net.Dialer{}).DialContext(ctx, network, to.String())
			}
			return w.connect(ctx, network, to)
		},
	}
	change(&cfg)
	w.user = serve(cfg)
	t.Cleanup(w.user.close)
	return w
}

// hostAddr is an address of the host, though a public one.
var hostAddr = netip.MustParseAddr("198.51.100.99")

func policyOf(t *testing.T, e sandbox.Egress, ranges Ranges) *policy {
	t.Helper()
	e, err := ranges.Resolve(e, sandbox.Egress{})
	if err != nil {
		t.Fatal(err)
	}
	return newPolicy(e, ranges)
}

func (w *world) set(rules ...sandbox.EgressRule) {
	w.t.Helper()
	w.user.set(policyOf(w.t, sandbox.Egress{Allow: rules}, w.user.policy.ranges))
}

// listenBoth listens on one port for both protocols.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if pc, err := net.ListenPacket("udp4", l.Addr().String()); err == nil {
			return l, pc
		}
		_ = l.Close()
	}
	t.Fatal("no port is free for both protocols")
	return nil, nil
}

// reusable opens a socket whose port others can use too, and that tells where
// each datagram was sent.
func reusable(t *testing.T, addr string) *net.UDPConn {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1))
		})
		return err
	}}
	c, err := config.ListenPacket(t.Context(), "udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UDPConn)
}

func replySocket(from, to netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from), Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return err
	}}
	c, err := d.Dial("udp4", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// connect is what the relay dials with.
func (w *world) connect(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, to)
	addr, ok := w.servers[to]
	stalled := w.stalled
	w.mu.Unlock()
	if stalled {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if !ok {
		return nil, errors.New("nobody is there")
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// connected returns what was dialled.
func (w *world) connected() []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.dialled)
}

// at has what is dialled at a destination arrive at addr.
func (w *world) at(to, addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[netip.MustParseAddrPort(to)] = addr
}

// server serves connections to a destination.
func (w *world) server(to string, serve func(*net.TCPConn)) {
	w.t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	w.t.Cleanup(func() { _ = l.Close(); w.user.close(); running.Wait() })
	w.at(to, l.Addr().String())
}

func echoTCP(c *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{c}, c)
	_ = c.CloseWrite()
}

// guestTCP is the guest's end of a connection; without one it was reset before
// it was seen to be there.
type guestTCP struct{ *net.TCPConn }

func (c guestTCP) Read(b []byte) (int, error) {
	if c.TCPConn == nil {
		return 0, syscall.ECONNRESET
	}
	return c.TCPConn.Read(b)
}

func (c guestTCP) Write(b []byte) (int, error) {
	if c.TCPConn == nil {
		return 0, syscall.ECONNRESET
	}
	return c.TCPConn.Write(b)
}

func (c guestTCP) CloseWrite() error {
	if c.TCPConn == nil {
		return syscall.ECONNRESET
	}
	return c.TCPConn.CloseWrite()
}

// connectTo is the guest: it connects to a destination.
func (w *world) connectTo(to string) guestTCP {
	w.t.Helper()
	w.tcp.mu.Lock()
	defer w.tcp.mu.Unlock()
	w.tcp.to <- netip.MustParseAddrPort(to)
	c, err := net.Dial("tcp4", w.tcp.Addr().String())
	if errors.Is(err, syscall.ECONNRESET) {
		return guestTCP{}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return guestTCP{c.(*net.TCPConn)}
}

// zone is what the host's resolver knows: for each name, addresses and other names.
type zone map[string][]string

func (z zone) answer(rw dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Answer = z.records(q.Question[0])
	if m.Answer == nil {
		m.Rcode = dns.RcodeNameError
	}
	_ = rw.WriteMsg(m)
}

// records returns those that answer a question, in order.
func (z zone) records(q dns.Question) (all []dns.RR) {
	owner := q.Name
	for range 20 {
		values, ok := z[dns.CanonicalName(owner)]
		if !ok {
			return all
		}
		if all == nil {
			all = []dns.RR{}
		}
		next := ""
		for _, value := range values {
			h := dns.RR_Header{Name: owner, Class: dns.ClassINET, Ttl: 60}
			addr, err := netip.ParseAddr(value)
			switch {
			case err != nil:
				h.Rrtype, next = dns.TypeCNAME, value
				all = append(all, &dns.CNAME{Hdr: h, Target: value})
			case addr.Is4() && q.Qtype == dns.TypeA:
				h.Rrtype = dns.TypeA
				all = append(all, &dns.A{Hdr: h, A: addr.AsSlice()})
			case addr.Is6() && q.Qtype == dns.TypeAAAA:
				h.Rrtype = dns.TypeAAAA
				all = append(all, &dns.AAAA{Hdr: h, AAAA: addr.AsSlice()})
			}
		}
		if next == "" {
			return all
		}
		owner = next
	}
	return all
}

// resolves sets what the host's resolver knows.
func (w *world) resolves(z zone) { w.answers(z.answer) }

func (w *world) answers(h dns.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = h
}

// queries returns what the host's resolver was asked.
func (w *world) queries() []dns.Question {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asked)
}

// serveDNS starts the host's resolver.
func (w *world) serveDNS() netip.AddrPort {
	w.t.Helper()
	l, pc := listenBoth(w.t)
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		w.mu.Lock()
		w.asked = append(w.asked, q.Question[0])
		answer := w.answer
		w.mu.Unlock()
		answer(rw, q)
	})
	var running sync.WaitGroup
	servers := []*dns.Server{{PacketConn: pc, Handler: handler, UDPSize: 4096}, {Listener: l, Handler: handler}}
	for _, s := range servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		running.Go(func() { _ = s.ActivateAndServe() })
		<-started
	}
	w.t.Cleanup(func() {
		for _, s := range servers {
			_ = s.Shutdown()
		}
		running.Wait()
	})
	return addrPort(pc.LocalAddr())
}

// exchange is the guest: it asks the resolver.
func (w *world) exchange(network string, q *dns.Msg) (*dns.Msg, error) {
	c := dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}
	m, _, err := c.Exchange(q, w.dns.String())
	return m, err
}

// resolve has the guest resolve a name.
func (w *world) resolve(name string, qtype uint16) *dns.Msg {
	w.t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	m, err := w.exchange("udp", q)
	if err != nil {
		w.t.Fatalf("resolve %s: %v", name, err)
	}
	return m
}

// denials returns what was refused, without what depends on time.
func (w *world) denials() []sandbox.EgressDenial {
	all := w.book.list()
	for i := range all {
		all[i].Last = time.Time{}
	}
	return all
}

// wantDenials waits for what was refused to be what is wanted.
func (w *world) wantDenials(want ...sandbox.EgressDenial) {
	w.t.Helper()
	var got []sandbox.EgressDenial
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = w.denials(); len(got) >= len(want) && equalDenials(got, want) {
			return
		}
		if len(want) == 0 {
			break
		}
	}
	if !equalDenials(got, want) {
		w.t.Errorf("denials are\n  %s\nwant\n  %s", show(got), show(want))
	}
}

func forName(name string, ports ...uint16) sandbox.EgressRule {
	return sandbox.EgressRule{Host: name, Ports: ports, Protocol: sandbox.TCP}
}

func inCIDR(prefix string, ports ...uint16) sandbox.EgressRule {
	return sandbox.EgressRule{CIDR: netip.MustParsePrefix(prefix), Ports: ports, Protocol: sandbox.TCP}
}

// udpRule is a rule for UDP.
func udpRule(r sandbox.EgressRule) sandbox.EgressRule { r.Protocol = sandbox.UDP; return r }

// show returns denials as a reader of a failed test wants them.
func show(all []sandbox.EgressDenial) string {
	lines := make([]string, len(all))
	for i, d := range all {
		b, _ := json.Marshal(d)
		lines[i] = string(b)
	}
	return strings.Join(lines, "\n  ")
}

func equalDenials(a, b []sandbox.EgressDenial) bool { return show(a) == show(b) }
