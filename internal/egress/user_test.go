package egress

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/sandbox"
)

// pingPong says something and waits for it to come back.
func pingPong(t *testing.T, c io.ReadWriter) {
	t.Helper()
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
}

// A policy that is made tighter cuts what it does not allow, and nothing else.
func TestSetCuts(t *testing.T) {
	w := newWorld(t, inCIDR("203.0.113.0/24", 22, 23), forName("db.example.org", 5432), forName("other.example.org", 5432))
	w.resolves(zone{"db.example.org.": {"203.0.113.5"}, "other.example.org.": {"203.0.113.6"}})
	for _, to := range []string{"203.0.113.5:22", "203.0.113.5:23", "203.0.113.5:5432", "203.0.113.6:5432"} {
		w.server(to, echoTCP)
	}
	w.resolve("db.example.org", dns.TypeA)
	w.resolve("other.example.org", dns.TypeA)
	stays := []guestTCP{w.connectTo("203.0.113.5:22"), w.connectTo("203.0.113.5:5432")}
	goes := []guestTCP{w.connectTo("203.0.113.5:23"), w.connectTo("203.0.113.6:5432")}
	for _, c := range append(stays, goes...) {
		pingPong(t, c)
	}
	w.wantDenials()
	begun := time.Now()
	// Another rule may be what allows a flow from now on.
	w.set(inCIDR("203.0.113.0/28", 22), inCIDR("203.0.113.5/32", 5432))
	for _, c := range goes {
		wantReset(t, c)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	for _, c := range stays {
		pingPong(t, c)
	}
	eventually(t, "both denials", func() bool { return len(w.denials()) == 2 })
	for _, d := range w.denials() {
		want := addrRule(netip.AddrPortFrom(d.Addr, d.Port), sandbox.TCP)
		if d.Host != "" {
			want = hostRule("other.example.org", sandbox.TCP, 5432)
		}
		if d.Reason != sandbox.DeniedNoRule || show([]sandbox.EgressDenial{{Rule: d.Rule}}) != show([]sandbox.EgressDenial{{Rule: want}}) {
			t.Errorf("the denial is %s", show([]sandbox.EgressDenial{d}))
		}
	}
	// What is new is decided by the new policy.
	c := w.connectTo("203.0.113.5:23")
	wantReset(t, c)
	if m := w.resolve("db.example.org", dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Errorf("a name that is not allowed any more is %v", m)
	}
	w.set()
	for _, c := range stays {
		wantReset(t, c)
	}
}

// A policy that is made wider holds at once.
func TestSetAllows(t *testing.T) {
	w := newWorld(t)
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	w.server("203.0.113.5:443", echoTCP)
	if m := w.resolve("api.example.org", dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Fatalf("the reply is %v", m)
	}
	w.set(forName("api.example.org"))
	if m := w.resolve("api.example.org", dns.TypeA); len(m.Answer) != 1 {
		t.Fatalf("the reply is %v", m)
	}
	c := w.connectTo("203.0.113.5:443")
	_, _ = c.Write(withName(t, "api.example.org"))
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Error(err)
	}
}

// What is resolved while the policy becomes tighter is not opened any more once
// set has returned.
func TestSetWaitsForOpenings(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	w := newWorld(t, forName("api.example.org"))
	w.answers(func(rw dns.ResponseWriter, q *dns.Msg) {
		close(asked)
		<-release
		zone{"api.example.org.": {"203.0.113.5"}}.answer(rw, q)
	})
	var asking sync.WaitGroup
	asking.Go(func() {
		if m := w.resolve("api.example.org", dns.TypeA); len(m.Answer) > 0 {
			t.Errorf("the reply is %v", m)
		}
	})
	<-asked
	w.set(forName("other.example.org"))
	close(release)
	asking.Wait()
	if got := w.opened.addrs(); len(got) > 0 {
		t.Errorf("opened %v", got)
	}
}

func TestRate(t *testing.T) {
	const kib = 2048
	for _, tt := range []struct {
		name string
		down bool
	}{{"from the guest", false}, {"to the guest", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorldOf(t, sandbox.Egress{Allow: []sandbox.EgressRule{inCIDR("203.0.113.0/24")}, RateKiBps: kib}, nil, func(*userConfig) {})
			const total = 2 * kib << 10
			took := make(chan time.Duration, 2)
			drain := func(c io.Reader) {
				begun := time.Now()
				_, _ = io.CopyN(io.Discard, c, total)
				took <- time.Since(begun)
			}
			fill := func(c io.Writer) { _, _ = c.Write(make([]byte, total)) }
			w.server("203.0.113.5:22", func(c *net.TCPConn) {
				if tt.down {
					fill(c)
				} else {
					drain(c)
				}
			})
			c := w.connectTo("203.0.113.5:22")
			if tt.down {
				drain(c)
			} else {
				fill(c)
			}
			// A burst is free. What is late may be so because the host is busy, what is
			// early never is.
			got := <-took
			t.Logf("%d KiB took %s", total>>10, got)
			if got < 1800*time.Millisecond || got > 4*time.Second {
				t.Errorf("%d KiB took %s, want 2 s within 10 %%", total>>10, got)
			}
		})
	}
}

// A rate holds for all flows together, and changes while they go on.
func TestRateChanges(t *testing.T) {
	w := newWorldOf(t, sandbox.Egress{Allow: []sandbox.EgressRule{inCIDR("203.0.113.0/24")}, RateKiBps: 64}, nil, func(*userConfig) {})
	w.server("203.0.113.5:22", func(c *net.TCPConn) { _, _ = c.Write(make([]byte, 1<<20)) })
	begun := time.Now()
	var reading sync.WaitGroup
	for range 4 {
		c := w.connectTo("203.0.113.5:22")
		reading.Go(func() { _, _ = io.CopyN(io.Discard, c, 1<<20) })
	}
	time.Sleep(500 * time.Millisecond)
	w.set(inCIDR("203.0.113.0/24")) // without a rate
	reading.Wait()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("4 MiB took %s", took)
	}
}

func TestTCPLimit(t *testing.T) {
	w := newWorld(t, inCIDR("203.0.113.0/24"))
	w.server("203.0.113.5:22", echoTCP)
	conns := make([]guestTCP, maxTCP)
	for i := range conns {
		conns[i] = w.connectTo("203.0.113.5:22")
	}
	for _, c := range conns {
		pingPong(t, c)
	}
	wantReset(t, w.connectTo("203.0.113.5:22"))
	w.wantDenials(refusal(sandbox.DeniedLimit, "", "203.0.113.5:22", nil))
	_ = conns[0].Close()
	eventually(t, "room for one more", func() bool { return w.flows() < maxTCP })
	pingPong(t, w.connectTo("203.0.113.5:22"))
}

// A connection may take so long to say for whom it is, and no longer.
func TestSilence(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, sandbox.Egress{Allow: []sandbox.EgressRule{forName("api.example.org")}}, nil, func(c *userConfig) { c.firstBytes = 50 * time.Millisecond })
	for _, tt := range []struct{ to, send string }{
		{"203.0.113.5:443", "\x16\x03\x01\x10\x00\x01"}, {"203.0.113.6:443", ""}, {"203.0.113.5:80", "GET / HT"}, {"203.0.113.6:80", ""},
	} {
		c := w.connectTo(tt.to)
		_, _ = io.WriteString(c, tt.send)
		begun := time.Now()
		_, _ = io.ReadAll(c)
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: it took %s", tt.to, took)
		}
	}
	w.wantDenials(
		refusal(sandbox.DeniedUnnamed, "", "203.0.113.5:443", forAddr("203.0.113.5:443")),
		refusal(sandbox.DeniedUnnamed, "", "203.0.113.6:443", forAddr("203.0.113.6:443")),
		refusal(sandbox.DeniedUnnamed, "", "203.0.113.5:80", forAddr("203.0.113.5:80")),
	)
}

// The end comes at once, whatever is under way.
func TestClose(t *testing.T) {
	rules := []sandbox.EgressRule{inCIDR("203.0.113.0/24", 22), forName("api.example.org"), udpRule(inCIDR("127.0.0.8/32"))}
	w := newWorldOf(t, sandbox.Egress{Allow: rules, RateKiBps: 1}, loopback, func(*userConfig) {})
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	w.server("203.0.113.5:22", echoTCP)
	w.udpServer("127.0.0.8", twice)
	w.resolve("api.example.org", dns.TypeA)
	conns := []guestTCP{w.connectTo("203.0.113.5:22"), w.connectTo("203.0.113.5:443"), w.connectTo("203.0.113.5:80")}
	pingPong(t, conns[0])
	_, _ = conns[1].Write([]byte{22, 3, 1})
	_, _ = io.WriteString(conns[2], "GET / HTTP/1.1\r\n")
	wantReply(t, w.send("127.0.0.8"), "x", "xx")
	// One that is being connected, with a request and without one, and names that
	// are being resolved.
	w.stall(true)
	conns = append(conns, w.connectTo("203.0.113.9:22"), w.connectTo("203.0.113.5:80"))
	_, _ = io.WriteString(conns[4], "GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n")
	w.answers(func(dns.ResponseWriter, *dns.Msg) {})
	q, _ := new(dns.Msg).SetQuestion("api.example.org.", dns.TypeA).Pack()
	asking, err := net.Dial("udp4", w.dns.String())
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	_, _ = asking.Write(q)
	byTCP, err := dns.Dial("tcp", w.dns.String())
	if err != nil {
		t.Fatal(err)
	}
	defer byTCP.Close()
	_ = byTCP.WriteMsg(new(dns.Msg).SetQuestion("api.example.org.", dns.TypeA))
	eventually(t, "everything in flight", func() bool { return w.flows() == 6 && len(w.queries()) == 3 && len(w.connected()) == 4 })
	var writing sync.WaitGroup
	writing.Go(func() { // what the rate holds up
		if _, err := conns[0].Write(make([]byte, 16<<20)); err == nil {
			t.Error("16 MiB passed")
		}
	})
	begun := time.Now()
	w.user.close()
	writing.Wait()
	if took := time.Since(begun); took > time.Second {
		t.Errorf("the end took %s", took)
	}
	if got := w.flows(); got > 0 {
		t.Errorf("%d flows are left", got)
	}
	for _, c := range conns[1:] {
		wantReset(t, c)
	}
	w.wantDenials()
	w.user.close() // a second time does nothing
}

func TestHostLocal(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1": true, "127.1.2.3": true, "::1": true, "203.0.113.5": false, "2606:4700::1": false} {
		if got := hostLocal(netip.MustParseAddr(addr)); got != want {
			t.Errorf("hostLocal(%s) = %t, want %t", addr, got, want)
		}
	}
}
