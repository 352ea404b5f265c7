package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/sandbox"
)

// unresolved is the denial of a name that no rule allows.
func unresolved(name string, count int64, rule *sandbox.EgressRule) sandbox.EgressDenial {
	return sandbox.EgressDenial{Host: name, Protocol: sandbox.DNS, Reason: sandbox.DeniedNoRule, Rule: rule, Count: count}
}

func missing(name string) sandbox.EgressDenial {
	rule := forName(name, 80, 443)
	return unresolved(name, 1, &rule)
}

func TestResolver(t *testing.T) {
	known := zone{
		"api.example.org.":       {"203.0.113.5", "2606:4700::1"},
		"a.example.com.":         {"203.0.113.6"},
		"example.com.":           {"203.0.113.7"},
		"cname.example.com.":     {"one.cdn.example.net."},
		"one.cdn.example.net.":   {"two.cdn.example.net."},
		"two.cdn.example.net.":   {"203.0.113.8", "203.0.113.9"},
		"loop.example.com.":      {"loop2.example.com."},
		"loop2.example.com.":     {"loop.example.com."},
		"mixed.example.com.":     {"10.0.0.1", "203.0.113.10", "127.0.0.1", "169.254.169.254", "198.51.100.99", "203.0.113.11"},
		"rebind.example.com.":    {"192.168.1.1"},
		"own.example.com.":       {"198.51.100.99"},
		"mapped.example.com.":    {"::ffff:203.0.113.5"},
		"nat64.example.com.":     {"64:ff9b::a00:1"},
		"xn--bcher-kva.example.": {"203.0.113.12"},
	}
	rules := []sandbox.EgressRule{forName("api.example.org"), forName("*.example.com"), forName("bücher.example")}
	for _, tt := range []struct {
		name   string
		ask    string
		qtype  uint16
		rcode  int
		want   []string
		asked  int
		denied []sandbox.EgressDenial
	}{
		{name: "on the list", ask: "api.example.org", want: []string{"203.0.113.5"}, asked: 1},
		{name: "upper case", ask: "API.Example.ORG", want: []string{"203.0.113.5"}, asked: 1},
		{name: "IPv6", ask: "api.example.org", qtype: dns.TypeAAAA, want: []string{"2606:4700::1"}, asked: 1},
		{name: "no such type", ask: "a.example.com", qtype: dns.TypeAAAA, asked: 1},
		{name: "IDN", ask: "xn--bcher-kva.example", want: []string{"203.0.113.12"}, asked: 1},
		{name: "wildcard", ask: "a.example.com", want: []string{"203.0.113.6"}, asked: 1},
		{name: "not the apex", ask: "example.com", rcode: dns.RcodeRefused, denied: []sandbox.EgressDenial{missing("example.com")}},
		{name: "not a longer name", ask: "evilexample.com", rcode: dns.RcodeRefused, denied: []sandbox.EgressDenial{missing("evilexample.com")}},
		{name: "not below an exact name", ask: "x.api.example.org", rcode: dns.RcodeRefused, denied: []sandbox.EgressDenial{missing("x.api.example.org")}},
		{name: "data in a name", ask: "c2VjcmV0.evil.net", rcode: dns.RcodeRefused, denied: []sandbox.EgressDenial{missing("c2vjcmv0.evil.net")}},
		{name: "a name that is none", ask: `a\000b\255.example.com`, rcode: dns.RcodeRefused, denied: []sandbox.EgressDenial{unresolved(`a\000b\255.example.com`, 1, nil)}},
		{name: "root", ask: ".", qtype: dns.TypeNS, rcode: dns.RcodeRefused, denied: []sandbox.EgressDenial{unresolved("", 1, nil)}},
		{name: "PTR", ask: "5.113.0.203.in-addr.arpa", qtype: dns.TypePTR, rcode: dns.RcodeRefused, denied: []sandbox.EgressDenial{unresolved("5.113.0.203.in-addr.arpa", 1, nil)}},
		{name: "TXT", ask: "api.example.org", qtype: dns.TypeTXT},
		{name: "HTTPS", ask: "api.example.org", qtype: dns.TypeHTTPS},
		{name: "ANY", ask: "api.example.org", qtype: dns.TypeANY},
		{name: "AXFR", ask: "api.example.org", qtype: dns.TypeAXFR},
		{name: "NULL", ask: "a.example.com", qtype: dns.TypeNULL},
		{name: "CNAMEs to other names", ask: "cname.example.com", want: []string{"203.0.113.8", "203.0.113.9"}, asked: 1},
		{name: "CNAMEs in a circle", ask: "loop.example.com", asked: 1},
		{name: "forbidden among others", ask: "mixed.example.com", want: []string{"203.0.113.10", "203.0.113.11"}, asked: 1, denied: []sandbox.EgressDenial{
			inRange("mixed.example.com", "10.0.0.1"), inRange("mixed.example.com", "127.0.0.1"),
			inRange("mixed.example.com", "169.254.169.254"), inRange("mixed.example.com", "198.51.100.99"),
		}},
		{name: "forbidden alone", ask: "rebind.example.com", rcode: dns.RcodeServerFailure, asked: 1, denied: []sandbox.EgressDenial{inRange("rebind.example.com", "192.168.1.1")}},
		{name: "the host's own", ask: "own.example.com", rcode: dns.RcodeServerFailure, asked: 1, denied: []sandbox.EgressDenial{inRange("own.example.com", "198.51.100.99")}},
		{name: "IPv4 in IPv6", ask: "mapped.example.com", qtype: dns.TypeAAAA, rcode: dns.RcodeServerFailure, asked: 1, denied: []sandbox.EgressDenial{inRange("mapped.example.com", "::ffff:203.0.113.5")}},
		{name: "NAT64", ask: "nat64.example.com", qtype: dns.TypeAAAA, rcode: dns.RcodeServerFailure, asked: 1, denied: []sandbox.EgressDenial{inRange("nat64.example.com", "64:ff9b::a00:1")}},
		{name: "no such name", ask: "none.example.com", rcode: dns.RcodeNameError, asked: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, rules...)
			w.resolves(known)
			qtype := tt.qtype
			if qtype == 0 {
				qtype = dns.TypeA
			}
			m := w.resolve(tt.ask, qtype)
			if m.Rcode != tt.rcode {
				t.Errorf("the code is %s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[tt.rcode])
			}
			var want []netip.Addr
			for _, addr := range tt.want {
				want = append(want, netip.MustParseAddr(addr))
			}
			if got := answered(t, m); !slices.Equal(got, want) {
				t.Errorf("addresses are %v, want %v", got, want)
			}
			if got := w.opened.addrs(); !slices.Equal(got, want) {
				t.Errorf("opened %v, want %v", got, want)
			}
			if got := len(w.queries()); got != tt.asked {
				t.Errorf("%d queries went upstream, want %d", got, tt.asked)
			}
			w.wantDenials(tt.denied...)
		})
	}
}

// inRange is the denial of an answer with an address that is never reached.
func inRange(name, addr string) sandbox.EgressDenial {
	return sandbox.EgressDenial{Host: name, Addr: netip.MustParseAddr(addr), Protocol: sandbox.DNS, Reason: sandbox.DeniedRange, Count: 1}
}

// answered returns the addresses of a reply, which are all at the name that was
// asked for.
func answered(t *testing.T, m *dns.Msg) (addrs []netip.Addr) {
	t.Helper()
	for _, rr := range m.Answer {
		if rr.Header().Name != m.Question[0].Name {
			t.Errorf("the reply has a record of %s", rr.Header().Name)
		}
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ := netip.AddrFromSlice(rr.A.To4())
			addrs = append(addrs, addr)
		case *dns.AAAA:
			addr, _ := netip.AddrFromSlice(rr.AAAA)
			addrs = append(addrs, addr)
		default:
			t.Errorf("the reply has %v", rr)
		}
	}
	return addrs
}

func TestResolveWithoutIPv6(t *testing.T) {
	w := newWorldOf(t, sandbox.Egress{Allow: []sandbox.EgressRule{forName("api.example.org")}}, nil, func(c *userConfig) { c.ipv6 = false })
	if m := w.resolve("api.example.org", dns.TypeAAAA); m.Rcode != dns.RcodeSuccess || len(m.Answer) > 0 {
		t.Errorf("the reply is %v, want an empty one", m)
	}
	if got := w.queries(); len(got) > 0 {
		t.Errorf("upstream was asked %v", got)
	}
}

func TestResolveTTL(t *testing.T) {
	for _, tt := range []struct {
		ttl  []uint32
		want time.Duration
	}{
		{[]uint32{0}, minTTL}, {[]uint32{4}, minTTL}, {[]uint32{30}, 30 * time.Second},
		{[]uint32{300, 60, 120}, time.Minute}, {[]uint32{1 << 31}, maxTTL}, {[]uint32{3601}, maxTTL},
	} {
		t.Run(fmt.Sprint(tt.ttl), func(t *testing.T) {
			w := newWorld(t, forName("api.example.org", 443, 8443))
			w.answers(func(rw dns.ResponseWriter, q *dns.Msg) {
				m := new(dns.Msg)
				m.SetReply(q)
				for i, ttl := range tt.ttl {
					h := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}
					m.Answer = append(m.Answer, &dns.A{Hdr: h, A: net.IPv4(203, 0, 113, byte(i))})
				}
				_ = rw.WriteMsg(m)
			})
			m := w.resolve("api.example.org", dns.TypeA)
			if len(m.Answer) != len(tt.ttl) {
				t.Fatalf("the reply is %v", m)
			}
			if got := time.Duration(m.Answer[0].Header().Ttl) * time.Second; got != tt.want {
				t.Errorf("the guest may keep it for %s, want %s", got, tt.want)
			}
			for _, got := range w.opened.list() {
				if got.ttl != tt.want+ttlGrace || !reflect.DeepEqual(got.rules, []sandbox.EgressRule{forName("api.example.org", 443, 8443)}) {
					t.Errorf("opened %+v, want the rule for %s", got, tt.want+ttlGrace)
				}
			}
		})
	}
}

// Many addresses come by TCP, as one packet does not hold them, and not all are
// taken. What the guest gets of them depends on what it says that it takes.
func TestResolveMany(t *testing.T) {
	w := newWorld(t, forName("*.example.com"))
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf("203.0.113.%d", i))
	}
	z := zone{"many.example.com.": many}
	w.answers(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = z.records(q.Question[0])
		if rw.LocalAddr().Network() == "udp" {
			m.Truncate(512)
		}
		_ = rw.WriteMsg(m)
	})
	for _, tt := range []struct {
		network   string
		edns      uint16
		truncated bool
	}{{"udp", 0, true}, {"udp", 100, true}, {"udp", 4096, false}, {"tcp", 0, false}} {
		q := new(dns.Msg)
		q.SetQuestion("many.example.com.", dns.TypeA)
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, false)
		}
		m, err := w.exchange(tt.network, q)
		if err != nil {
			t.Fatal(err)
		}
		if m.Truncated != tt.truncated || !tt.truncated && len(m.Answer) != maxAddrs {
			t.Errorf("%s with EDNS %d: truncated is %t, of %d addresses", tt.network, tt.edns, m.Truncated, len(m.Answer))
		}
		if got := m.IsEdns0() != nil; got != (tt.edns > 0) {
			t.Errorf("%s with EDNS %d: the reply has an option record: %t", tt.network, tt.edns, got)
		}
	}
	if got := len(w.opened.list()); got != 4*maxAddrs {
		t.Errorf("opened %d addresses, want %d for each question", got, maxAddrs)
	}
}

func TestResolveNotOpened(t *testing.T) {
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	w.opened.fail(errors.New("the set is full"))
	if m := w.resolve("api.example.org", dns.TypeA); m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 {
		t.Errorf("the reply is %v, though the address is not open", m)
	}
	if w.user.resolver.knows("api.example.org", netip.MustParseAddr("203.0.113.5")) {
		t.Error("the name is known to be at an address that is not open")
	}
}

// Messages that a stub resolver does not send.
func TestMessages(t *testing.T) {
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	question := func(change func(*dns.Msg)) []byte {
		m := new(dns.Msg).SetQuestion("api.example.org.", dns.TypeA)
		change(m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rr := &dns.A{Hdr: dns.RR_Header{Name: "api.example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(1, 2, 3, 4)}
	for _, tt := range []struct {
		name string
		b    []byte
		want int // -1: no reply
	}{
		{"as it should be", question(func(*dns.Msg) {}), dns.RcodeSuccess},
		{"empty", nil, -1},
		{"short", make([]byte, 11), -1},
		{"a reply", question(func(m *dns.Msg) { m.Response = true }), -1},
		{"no question", question(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"two questions that are one", patched(question(func(*dns.Msg) {}), 5, 2), dns.RcodeFormatError},
		{"cut off", question(func(*dns.Msg) {})[:20], dns.RcodeFormatError},
		{"name that points to itself", append(make12(1), 0xC0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		{"an answer in the question", question(func(m *dns.Msg) { m.Answer = []dns.RR{rr} }), dns.RcodeFormatError},
		{"an authority in the question", question(func(m *dns.Msg) { m.Ns = []dns.RR{rr} }), dns.RcodeFormatError},
		{"much beside the question", question(func(m *dns.Msg) { m.Extra = []dns.RR{rr, rr, rr} }), dns.RcodeFormatError},
		{"UPDATE", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"NOTIFY", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"CHAOS", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"ANY class", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		{"EDNS version 1", question(func(m *dns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		{"EDNS with options", question(func(m *dns.Msg) {
			m.SetEdns0(4096, true)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}, &dns.EDNS0_PADDING{Padding: make([]byte, 100)}}
		}), dns.RcodeSuccess},
		{"larger than a question", question(func(m *dns.Msg) {
			m.SetEdns0(4096, true)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 2000)}}
		}), dns.RcodeFormatError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("udp4", w.dns.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(tt.b); err != nil {
				t.Fatal(err)
			}
			wait := 10 * time.Second
			if tt.want < 0 {
				wait = 50 * time.Millisecond
			}
			_ = c.SetReadDeadline(time.Now().Add(wait))
			buf := make([]byte, 4096)
			n, err := c.Read(buf)
			if tt.want < 0 {
				if err == nil {
					t.Errorf("there is a reply: %x", buf[:n])
				}
				return
			}
			m := new(dns.Msg)
			if err != nil || m.Unpack(buf[:n]) != nil {
				t.Fatalf("reply %x, error %v", buf[:n], err)
			}
			if m.Rcode != tt.want || m.Id != binary.BigEndian.Uint16(tt.b) || !m.Response {
				t.Errorf("the reply is %v, want %s", m, dns.RcodeToString[tt.want])
			}
		})
	}
}

// patched returns b with one byte changed.
func patched(b []byte, i int, to byte) []byte { b[i] = to; return b }

// make12 is the header of a message with that many questions.
func make12(questions byte) []byte { return []byte{1, 2, 1, 0, 0, questions, 0, 0, 0, 0, 0, 0} }

// A connection carries many questions, and one that is too long ends it.
func TestResolveByTCP(t *testing.T) {
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	c, err := dns.DialTimeout("tcp", w.dns.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, name := range []string{"api.example.org.", "other.example.org.", "api.example.org."} {
		if err := c.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if m, err := c.ReadMsg(); err != nil || m.Question[0].Name != name || (m.Rcode == dns.RcodeRefused) != (name == "other.example.org.") {
			t.Fatalf("for %s: %v, error %v", name, m, err)
		}
	}
	if _, err := c.Conn.Write([]byte{0xFF, 0xFF, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Conn.Read(make([]byte, 1)); err == nil {
		t.Error("a message of 64 KiB was answered")
	}
	w.wantDenials(missing("other.example.org"))
}

// Connections that say nothing do not add up.
func TestResolveConnections(t *testing.T) {
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	for range maxDNSConns {
		c, err := net.Dial("tcp4", w.dns.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	q := new(dns.Msg).SetQuestion("api.example.org.", dns.TypeA)
	if m, err := w.exchange("tcp", q); err == nil {
		t.Errorf("one more connection is answered: %v", m)
	}
	w.wantDenials(sandbox.EgressDenial{Protocol: sandbox.DNS, Reason: sandbox.DeniedLimit, Count: 1})
	if m, err := w.exchange("udp", q); err != nil || len(m.Answer) != 1 {
		t.Errorf("the reply is %v, error %v", m, err)
	}
}

// A flood of questions costs upstream no more than what is allowed, and of names
// no more memory than the book has.
func TestResolveFlood(t *testing.T) {
	w := newWorld(t, forName("*.example.com"))
	release := make(chan struct{})
	w.answers(func(rw dns.ResponseWriter, q *dns.Msg) {
		<-release
		zone{}.answer(rw, q)
	})
	c, err := net.Dial("udp4", w.dns.String())
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	refused := 0
	reading.Go(func() {
		buf, m := make([]byte, 4096), new(dns.Msg)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if m.Unpack(buf[:n]) == nil && m.Rcode == dns.RcodeServerFailure {
				refused++
			}
		}
	})
	for i := range 5000 {
		name := fmt.Sprintf("n%d.example.com.", i)
		if i%2 == 0 {
			name = fmt.Sprintf("n%d.example.net.", i)
		}
		b, _ := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		_, _ = c.Write(b)
	}
	if m := func() *dns.Msg { time.Sleep(100 * time.Millisecond); return w.resolve("last.example.com", dns.TypeA) }(); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("one more is %v, want SERVFAIL", m)
	}
	if got := len(w.queries()); got == 0 || got > maxLookups {
		t.Errorf("%d queries went upstream, want at most %d", got, maxLookups)
	}
	close(release)
	_ = c.Close()
	reading.Wait()
	if refused == 0 {
		t.Error("none was refused at once")
	}
	if got := len(w.denials()); got > maxDenials+4 {
		t.Errorf("%d denials are kept", got)
	}
	if !slices.ContainsFunc(w.denials(), func(d sandbox.EgressDenial) bool {
		return d.Reason == sandbox.DeniedLimit && d.Protocol == sandbox.DNS && d.Count > 0
	}) {
		t.Error("no denial says that there were too many")
	}
}

// The table of names stays within its bound, and keeps what is new.
func TestRemember(t *testing.T) {
	r := newResolver(&userConfig{})
	until := time.Now().Add(time.Hour)
	last := netip.MustParseAddr("203.0.113.1")
	for i := range 3 * maxResolved {
		r.remember(fmt.Sprintf("n%d.example.com", i), last, until)
		if last = last.Next(); i%3 == 0 {
			r.remember("same.example.com", last, until)
		}
		if r.resolved > maxResolved {
			t.Fatalf("%d addresses are remembered", r.resolved)
		}
	}
	n := 0
	for addr, names := range r.table {
		if len(names) == 0 {
			t.Errorf("%s has no name", addr)
		}
		n += len(names)
	}
	if n != r.resolved {
		t.Errorf("%d addresses are counted, %d are there", r.resolved, n)
	}
	r.remember("new.example.com", last, until)
	r.remember("old.example.com", last, time.Now().Add(-time.Second))
	if !r.knows("new.example.com", last) || r.knows("old.example.com", last) || r.hostAt(last) == "old.example.com" {
		t.Error("what is known is not what holds")
	}
}

func FuzzParseQuestion(f *testing.F) {
	for _, m := range []*dns.Msg{
		new(dns.Msg).SetQuestion("api.example.org.", dns.TypeA),
		new(dns.Msg).SetQuestion("a.example.org.", dns.TypeAAAA).SetEdns0(4096, true),
	} {
		b, _ := m.Pack()
		f.Add(b)
	}
	f.Add(append(make12(1), 0xC0, 12, 0, 1, 0, 1))
	log := newBook()
	p := newPolicy(sandbox.Egress{Allow: []sandbox.EgressRule{forName("*.example.org", 443)}}, nil)
	r := newResolver(&userConfig{policy: p, book: log})
	f.Fuzz(func(t *testing.T, b []byte) {
		q, reply := r.read(b)
		if q == nil {
			if reply != nil {
				t.Error("a reply to nothing")
			}
			return
		}
		if reply == nil {
			name, ok := guestName(strings.TrimSuffix(q.Question[0].Name, "."))
			if !ok || len(p.rulesFor(name)) == 0 {
				t.Errorf("%q would be asked for", name)
			}
			reply = failed(q)
		}
		if packed, err := reply.Pack(); err != nil || len(packed) > maxQuery {
			t.Errorf("the reply has %d bytes, error %v", len(packed), err)
		}
		for _, d := range log.list() {
			if len(d.Host) > 3*maxName {
				t.Errorf("%d bytes of a name are kept", len(d.Host))
			}
		}
	})
}
