package egress

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/sandbox"
)

// What comes from upstream is only taken if it answers the question.
func TestResolveStray(t *testing.T) {
	good := zone{"api.example.org.": {"203.0.113.5"}}
	reply := func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(203, 0, 113, 66)}}
		return m
	}
	for _, tt := range []struct {
		name string
		make func(m *dns.Msg)
	}{
		{"other id", func(m *dns.Msg) { m.Id++ }},
		{"other question", func(m *dns.Msg) { m.Question[0].Name = "www.example.org." }},
		{"other type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }},
		{"other class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }},
		{"no question", func(m *dns.Msg) { m.Question = nil }},
		{"no reply", func(m *dns.Msg) { m.Response = false }},
		{"other opcode", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, forName("api.example.org"))
			w.answers(func(rw dns.ResponseWriter, q *dns.Msg) {
				m := reply(q)
				tt.make(m)
				_ = rw.WriteMsg(m)
				_, _ = rw.Write([]byte("no message"))
				good.answer(rw, q)
			})
			if got := answered(t, w.resolve("api.example.org", dns.TypeA)); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("203.0.113.5")}) {
				t.Errorf("addresses are %v, want those of the answer", got)
			}
		})
	}
	t.Run("other case", func(t *testing.T) {
		w := newWorld(t, forName("api.example.org"))
		w.answers(func(rw dns.ResponseWriter, q *dns.Msg) {
			if rw.LocalAddr().Network() == "tcp" {
				good.answer(rw, q)
				return
			}
			m := reply(q)
			m.Question[0].Name = strings.ToUpper(m.Question[0].Name)
			m.Answer[0].Header().Name = m.Question[0].Name
			_ = rw.WriteMsg(m)
		})
		if got := answered(t, w.resolve("api.example.org", dns.TypeA)); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("203.0.113.5")}) {
			t.Errorf("addresses are %v, want those that came by TCP", got)
		}
	})
	t.Run("records of others", func(t *testing.T) {
		w := newWorld(t, forName("api.example.org"))
		w.answers(func(rw dns.ResponseWriter, q *dns.Msg) {
			m := reply(q)
			other := dns.Copy(m.Answer[0]).(*dns.A)
			other.Hdr.Name, other.A = "www.example.org.", net.IPv4(203, 0, 113, 67)
			m.Answer, m.Extra = append(m.Answer, other), []dns.RR{other}
			_ = rw.WriteMsg(m)
		})
		if got := w.resolve("api.example.org", dns.TypeA); len(got.Answer) != 1 || len(got.Extra) > 0 || len(w.opened.list()) != 1 {
			t.Errorf("the reply is %v, opened %v; want one address", got, w.opened.list())
		}
	})
}

func TestResolveUpstream(t *testing.T) {
	failed := sandbox.EgressDenial{Host: "api.example.org", Protocol: sandbox.DNS, Reason: sandbox.DeniedUnresolved, Count: 1}
	for _, tt := range []struct {
		name   string
		answer dns.HandlerFunc
		want   int
	}{
		{"refuses", func(rw dns.ResponseWriter, q *dns.Msg) { _ = rw.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused)) }, dns.RcodeServerFailure},
		{"fails", func(rw dns.ResponseWriter, q *dns.Msg) {
			_ = rw.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
		}, dns.RcodeServerFailure},
		{"is silent", func(dns.ResponseWriter, *dns.Msg) {}, dns.RcodeServerFailure},
		{"floods", func(rw dns.ResponseWriter, _ *dns.Msg) {
			for range 2 * maxStray {
				_, _ = rw.Write([]byte("never mind"))
			}
		}, dns.RcodeServerFailure},
		{"sends too much", func(rw dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			if rw.LocalAddr().Network() == "udp" {
				m.Truncated = true
			}
			for i := 0; rw.LocalAddr().Network() == "tcp" && i < 2000; i++ {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(203, 0, byte(i>>8), byte(i))})
			}
			_ = rw.WriteMsg(m)
		}, dns.RcodeServerFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, forName("api.example.org"))
			w.answers(tt.answer)
			begun := time.Now()
			if m := w.resolve("api.example.org", dns.TypeA); m.Rcode != tt.want || len(m.Answer) > 0 {
				t.Errorf("the reply is %v, want %s", m, dns.RcodeToString[tt.want])
			}
			if took := time.Since(begun); took > lookupTimeout+3*time.Second {
				t.Errorf("it took %s", took)
			}
			w.wantDenials(failed)
		})
	}
}

// The second resolver is asked if the first does not answer.
func TestResolveNext(t *testing.T) {
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	first := addrPort(silent.LocalAddr())
	w := newWorldOf(t, sandbox.Egress{Allow: []sandbox.EgressRule{forName("api.example.org")}}, nil, func(c *userConfig) {
		c.resolvers = append([]netip.AddrPort{first}, c.resolvers...)
	})
	w.at(first.String(), first.String())
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	if m := w.resolve("api.example.org", dns.TypeA); len(answered(t, m)) != 1 {
		t.Errorf("the reply is %v", m)
	}
	w.wantDenials()
}

func FuzzAddresses(f *testing.F) {
	z := zone{"a.example.org.": {"b.example.org."}, "b.example.org.": {"203.0.113.1", "203.0.113.2"}}
	q := new(dns.Msg).SetQuestion("a.example.org.", dns.TypeA)
	m := new(dns.Msg).SetReply(q)
	m.Answer = z.records(q.Question[0])
	b, _ := m.Pack()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		q.Id = m.Id
		if !answersTo(m, q) {
			return
		}
		addrs, ttl := addresses(m, dns.TypeA)
		if len(addrs) > maxAddrs || ttl > maxTTL || ttl < 0 {
			t.Errorf("%d addresses for %s", len(addrs), ttl)
		}
		for _, addr := range addrs {
			if !addr.Is4() {
				t.Errorf("%s is no answer", addr)
			}
		}
	})
}
