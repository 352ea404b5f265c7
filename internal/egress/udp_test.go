package egress

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

// loopback is what the tests of UDP let a guest reach: the kernel says where a
// datagram was sent, so it has to be an address of this host.
var loopback = Ranges{netip.MustParsePrefix("127.0.0.0/8")}

// newUDPWorld is a world whose guest reaches addresses of loopback, at the port
// of the relay's socket.
func newUDPWorld(t *testing.T, change func(*userConfig), rules ...sandbox.EgressRule) *world {
	t.Helper()
	return newWorldOf(t, sandbox.Egress{Allow: rules}, loopback, change)
}

// udpServer answers datagrams to addr with what it makes of them.
func (w *world) udpServer(addr string, answer func(string) []string) {
	w.t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, s := range answer(string(buf[:n])) {
				_, _ = pc.WriteTo([]byte(s), from)
			}
		}
	})
	w.t.Cleanup(func() { _ = pc.Close(); running.Wait() })
	w.at(netip.AddrPortFrom(netip.MustParseAddr(addr), w.udp).String(), pc.LocalAddr().String())
}

// send is the guest: it opens a socket to addr.
func (w *world) send(addr string) *net.UDPConn {
	w.t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), w.udp)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// wantReply sends a datagram and reads one.
func wantReply(t *testing.T, c *net.UDPConn, send, want string) {
	t.Helper()
	if _, err := c.Write([]byte(send)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 64<<10)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
		t.Fatalf("read %d bytes %.20q, error %v; want %.20q", n, buf[:n], err, want)
	}
}

func twice(s string) []string { return []string{s + s} }

func TestUDP(t *testing.T) {
	w := newUDPWorld(t, func(*userConfig) {}, udpRule(inCIDR("127.0.0.8/29")))
	w.udpServer("127.0.0.8", twice)
	w.udpServer("127.0.0.9", func(s string) []string { return []string{"nine " + s} })
	a, b, other := w.send("127.0.0.8"), w.send("127.0.0.8"), w.send("127.0.0.9")
	for i := range 20 {
		s := fmt.Sprint(i)
		wantReply(t, a, "a"+s, "a"+s+"a"+s)
		wantReply(t, b, "b"+s, "b"+s+"b"+s)
		wantReply(t, other, s, "nine "+s)
	}
	if got := w.flows(); got != 3 {
		t.Errorf("there are %d flows, want 3", got)
	}
	if got := len(w.connected()); got != 3 {
		t.Errorf("%d sockets were opened, want 3", got)
	}
	w.wantDenials()
}

func TestUDPRefused(t *testing.T) {
	rule := udpRule(inCIDR("127.0.0.8/29"))
	for _, tt := range []struct {
		name   string
		to     string
		reason sandbox.EgressReason
		host   string
	}{
		{name: "no rule", to: "127.0.0.20", reason: sandbox.DeniedNoRule},
		{name: "another protocol", to: "127.0.0.30", reason: sandbox.DeniedNoRule},
		{name: "the host's own", to: "127.0.0.10", reason: sandbox.DeniedRange},
		{name: "another port of the name", to: "127.0.0.40", reason: sandbox.DeniedNoRule, host: "db.example.org"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newUDPWorld(t, func(c *userConfig) {
				c.hostLocal = func(addr netip.Addr) bool { return addr == netip.MustParseAddr("127.0.0.10") }
			}, rule, inCIDR("127.0.0.30/32"), udpRule(forName("db.example.org", 1)))
			w.resolves(zone{"db.example.org.": {"127.0.0.40"}})
			w.resolve("db.example.org", dns.TypeA)
			w.udpServer(tt.to, twice)
			_, _ = w.send(tt.to).Write([]byte("hello"))
			to := netip.AddrPortFrom(netip.MustParseAddr(tt.to), w.udp)
			d := sandbox.EgressDenial{Host: tt.host, Addr: to.Addr(), Port: to.Port(), Protocol: sandbox.UDP, Reason: tt.reason, Count: 1}
			switch {
			case tt.host != "":
				d.Rule = hostRule(tt.host, sandbox.UDP, to.Port())
			case tt.reason == sandbox.DeniedNoRule:
				d.Rule = addrRule(to, sandbox.UDP)
			}
			w.wantDenials(d)
			if got := w.connected(); len(got) > 0 {
				t.Errorf("the relay opened a socket to %v", got)
			}
			eventually(t, "the end of the flow", func() bool { return w.flows() == 0 })
		})
	}
}

// A name's address is enough for UDP.
func TestUDPByName(t *testing.T) {
	w := newUDPWorld(t, func(c *userConfig) {
		// The port is that of the relay's socket, which is not known before.
		port := addrPort(c.sockets.udp[0].LocalAddr()).Port()
		c.policy = policyOf(t, sandbox.Egress{Allow: []sandbox.EgressRule{udpRule(forName("ntp.example.org", port))}}, loopback)
	})
	w.resolves(zone{"ntp.example.org.": {"127.0.0.8"}})
	w.udpServer("127.0.0.8", twice)
	wantReply(t, w.send("127.0.0.8"), "x", "xx")
	w.wantDenials()
}

// A flow ends when nothing passes, and begins anew when something does.
func TestUDPIdle(t *testing.T) {
	w := newUDPWorld(t, func(c *userConfig) { c.udpIdle = 50 * time.Millisecond }, udpRule(inCIDR("127.0.0.8/32")))
	w.udpServer("127.0.0.8", twice)
	c := w.send("127.0.0.8")
	wantReply(t, c, "x", "xx")
	eventually(t, "the end of the flow", func() bool { return w.flows() == 0 })
	wantReply(t, c, "y", "yy")
	if got := len(w.connected()); got != 2 {
		t.Errorf("%d sockets were opened, want 2", got)
	}
}

func TestUDPLimits(t *testing.T) {
	w := newUDPWorld(t, func(*userConfig) {}, udpRule(inCIDR("127.0.0.8/32")))
	w.udpServer("127.0.0.8", func(s string) []string {
		if s == "large" {
			return []string{string(make([]byte, maxDatagram+1)), string(make([]byte, maxDatagram))}
		}
		return twice(s)
	})
	first := w.send("127.0.0.8")
	wantReply(t, first, "large", string(make([]byte, maxDatagram)))
	for range maxUDP - 1 {
		wantReply(t, w.send("127.0.0.8"), "x", "xx")
	}
	_, _ = w.send("127.0.0.8").Write([]byte("too many"))
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.8"), w.udp)
	w.wantDenials(sandbox.EgressDenial{Addr: to.Addr(), Port: to.Port(), Protocol: sandbox.UDP, Reason: sandbox.DeniedLimit, Count: 1})
	wantReply(t, first, "still", "stillstill")
}

// What waits for a connection is bounded.
func TestUDPWaiting(t *testing.T) {
	w := newUDPWorld(t, func(*userConfig) {}, udpRule(inCIDR("127.0.0.8/32")))
	w.stall(true)
	c := w.send("127.0.0.8")
	for range 10 * maxWaiting {
		_, _ = c.Write(make([]byte, 1000))
	}
	eventually(t, "a flow", func() bool { return w.flows() == 1 })
	begun := time.Now()
	w.user.close()
	if took := time.Since(begun); took > time.Second {
		t.Errorf("the end took %s", took)
	}
}

func (w *world) stall(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stalled = is
}

// Only what the kernel says about a datagram is a destination.
func TestDestination(t *testing.T) {
	for name, control := range map[string][]byte{
		"nothing": nil, "zeroes": make([]byte, 32), "another message": unix.UnixRights(1),
	} {
		if to, ok := destination(control); ok {
			t.Errorf("%s: the destination is %s", name, to)
		}
	}
}
