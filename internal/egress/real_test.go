package egress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
	"github.com/emberd/emberd/internal/x/fault"
)

// handshake opens a connection and returns the relay's end of it.
func (b *bench) handshake(dst string, port uint16) (net.Conn, frame) {
	b.Helper()
	f := b.honest(unix.IPPROTO_TCP, dst, port)
	b.send(f)
	got, tcp := b.read(soon)
	if got != "open from "+dst {
		b.Fatalf("got %s", got)
	}
	f.flags, f.seq, f.ack = tcpACK, f.seq+1, binary.BigEndian.Uint32(tcp[4:])+1
	b.send(f)
	l := b.s.tcp[0]
	if f.dst.Is6() {
		l = b.s.tcp[1]
	}
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(soon)); err != nil {
		b.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c, f
}

func TestRealRelayedFlow(t *testing.T) {
	b := attach(t, false, policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{
		rangeRule("203.0.113.0/24", sandbox.TCP, 443), rangeRule("203.0.113.0/24", sandbox.UDP, 443), {Host: "api.example.org", Ports: []uint16{5432}},
	}}))
	c, f := b.handshake("203.0.113.9", 443)
	if got := c.LocalAddr().String(); got != "203.0.113.9:443" {
		t.Errorf("the relay hears of %s", got)
	}
	if got, want := c.RemoteAddr().String(), netip.AddrPortFrom(b.guest.Addr, f.srcPort).String(); got != want {
		t.Errorf("it is from %s, want %s", got, want)
	}
	f.payload = []byte("hello")
	b.send(f)
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Errorf("got %q, %v", buf, err)
	}

	// The policy that allowed it is gone: what is open is the relay's to end, a new
	// one is refused.
	if err := b.set(policyFor(t, sandbox.Egress{})); err != nil {
		t.Fatal(err)
	}
	f.seq += 5
	f.payload = []byte("again")
	b.send(f)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "again" {
		t.Errorf("got %q, %v", buf, err)
	}
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	for {
		got, _ := b.read(soon)
		if got == "reset from 203.0.113.9" {
			break
		}
		if got == "nothing" {
			t.Fatal("no reset came")
		}
	}
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "203.0.113.9", 443), "reset"); got != "reset from 203.0.113.9" {
		t.Errorf("got %s after the policy changed", got)
	}
}

// A datagram of a flow that has a socket of its own arrives there.
func TestRealUDPFlow(t *testing.T) {
	b := attach(t, false, policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{rangeRule("203.0.113.0/24", sandbox.UDP)}}))
	f := b.honest(unix.IPPROTO_UDP, "203.0.113.9", 443)
	f.payload = []byte("one")
	b.send(f)
	c := b.s.udp[0]
	_ = c.SetReadDeadline(time.Now().Add(soon))
	data, from, to, err := readUDP(c)
	if err != nil || string(data) != "one" || to.String() != "203.0.113.9:443" {
		t.Fatalf("got %q from %s to %s, %v", data, from, to, err)
	}
	r, err := b.s.reply(to, from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	// Another port of the guest's, the same destination.
	r2, err := b.s.reply(to, netip.AddrPortFrom(from.Addr(), from.Port()+1))
	if err != nil {
		t.Fatal(err)
	}
	_ = r2.Close()
	f.payload = []byte("two")
	b.send(f)
	_ = r.SetReadDeadline(time.Now().Add(soon))
	buf := make([]byte, 10)
	n, err := r.Read(buf)
	if err != nil || string(buf[:n]) != "two" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if _, err := r.Write([]byte("three")); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.read(soon); got != `udp "three" from 203.0.113.9` {
		t.Errorf("got %s", got)
	}
}

func TestRealNamesEnd(t *testing.T) {
	api := sandbox.EgressRule{Host: "api.example.org", Ports: []uint16{443}}
	wide := sandbox.EgressRule{Host: "*.example.org", Ports: []uint16{443}}
	p := policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{api, wide}})
	b := attach(t, false, p)
	api, wide = p.Allow[0], p.Allow[1]
	addr := netip.MustParseAddr("192.0.2.1")
	try := func() string {
		return strings.Fields(b.ask(b.honest(unix.IPPROTO_TCP, "192.0.2.1", 443), "open"))[0]
	}
	if got := try(); got != "reset" {
		t.Errorf("before it was resolved: %s", got)
	}
	if err := b.open(addr, []sandbox.EgressRule{api}, 0); err != nil {
		t.Fatal(err)
	}
	if got := try(); got != "open" {
		t.Errorf("after it was resolved: %s", got)
	}
	// Resolved again, for longer and for another rule as well.
	if err := b.open(addr, []sandbox.EgressRule{api, wide}, time.Hour); err != nil {
		t.Fatal(err)
	}
	time.Sleep(shortestOpen + time.Second)
	if got := try(); got != "open" {
		t.Errorf("the second answer did not hold: %s", got)
	}
	if err := b.set(policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{wide}})); err != nil {
		t.Fatal(err)
	}
	if got := try(); got != "open" {
		t.Errorf("with one of its rules: %s", got)
	}
	if err := b.set(policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{{Host: "*.example.org", Ports: []uint16{80}}}})); err != nil {
		t.Fatal(err)
	}
	if got := try(); got != "reset" {
		t.Errorf("with none of its rules: %s", got)
	}
	if err := b.open(netip.MustParseAddr("169.254.169.254"), []sandbox.EgressRule{api}, time.Hour); err == nil {
		t.Error("a forbidden address is opened")
	}
	if err := b.open(addr, []sandbox.EgressRule{api}, 0); err != nil {
		t.Fatal(err)
	}
	// The kernel counts the ticks of its timer, of which an emulated one loses some.
	for end := time.Now().Add(time.Minute); try() != "reset"; time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatal("it is open after its time")
		}
	}
}

func TestRealQuota(t *testing.T) {
	rules := []sandbox.EgressRule{rangeRule("203.0.113.0/24", sandbox.UDP)}
	p := policyFor(t, sandbox.Egress{Allow: rules, TotalMiB: 1})
	b := attach(t, false, p)
	f := b.honest(unix.IPPROTO_UDP, "203.0.113.9", 9)
	f.payload = make([]byte, 1400)
	got := "nothing"
	for sent := 0; sent < 2<<20 && got == "nothing"; sent += len(f.payload) {
		b.send(f)
		got, _ = b.read(time.Millisecond)
	}
	if got != "icmp 3/13" {
		t.Fatalf("over the limit: %s", got)
	}
	if used := b.counts(); used.Bytes < 1<<20 || used.Bytes > 1<<20+4096 {
		t.Errorf("%d bytes count as used", used.Bytes)
	}
	if got := b.denials(); len(got) != 1 || !strings.HasPrefix(got[0], "limit 203.0.113.9 9 udp") {
		t.Errorf("denied is %q", got)
	}
	// A restart does not give more, nor does the same limit again.
	if err := b.set(p); err != nil {
		t.Fatal(err)
	}
	b.adopt(p)
	if got := b.ask(f, "icmp"); got != "icmp 3/13" {
		t.Errorf("after a restart: %s", got)
	}
	if err := b.set(policyFor(t, sandbox.Egress{Allow: rules, TotalMiB: 2})); err != nil {
		t.Fatal(err)
	}
	for { // what was refused before
		if got, _ := b.read(quiet); got == "nothing" {
			break
		}
	}
	if got := b.ask(f, "nothing"); got != "nothing" {
		t.Errorf("with more: %s", got)
	}
}

// adopt ends the daemon's part, and has another take over.
func (b *bench) adopt(p *policy) {
	b.Helper()
	if err := errors.Join(b.s.close(), b.close()); err != nil {
		b.Fatal(err)
	}
	var err error
	if b.kernel, b.s, err = adoptKernel(b.Context(), kernelConfig{ipv6: b.ipv6, log: quietLog()}, b.vmm, p); err != nil {
		b.Fatal(err)
	}
}

// dump is everything in the table, byte for byte, as the kernel tells it.
func (b *bench) dump() string {
	b.Helper()
	conn, err := b.talk()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.CloseLasting() }()
	text, err := readBack(conn, int(b.ns.file.Fd()))
	if err != nil {
		b.Fatal(err)
	}
	var all bytes.Buffer
	all.WriteString(text)
	for _, s := range b.rules.sets {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			b.Fatal(err)
		}
		slices.SortFunc(elements, func(x, y nftElement) int { return bytes.Compare(x.Key, y.Key) })
		for _, e := range elements {
			fmt.Fprintf(&all, "%s %x-%x %s\n", s.Name, e.Key, e.KeyEnd, e.Comment)
		}
	}
	return all.String()
}

func TestRealAdopt(t *testing.T) {
	rules := []sandbox.EgressRule{rangeRule("203.0.113.0/24", sandbox.TCP, 443), rangeRule("203.0.112.0/23", sandbox.TCP, 443, 444), {Host: "*.example.org", Ports: []uint16{443}}}
	p := policyFor(t, sandbox.Egress{Allow: rules})
	b := attach(t, true, p)
	if err := b.open(netip.MustParseAddr("192.0.2.1"), p.Allow[2:], time.Hour); err != nil {
		t.Fatal(err)
	}
	b.ask(b.honest(unix.IPPROTO_TCP, "10.0.0.1", 443), "reset")
	before := b.dump()

	// Without a daemon nothing passes, and what is refused is refused.
	if err := b.s.close(); err != nil {
		t.Fatal(err)
	}
	for _, dst := range []string{"203.0.113.9", "192.0.2.1"} {
		if got := b.ask(b.honest(unix.IPPROTO_TCP, dst, 443), "nothing"); got != "nothing" {
			t.Errorf("without a daemon: %s", got)
		}
	}
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "10.0.0.1", 443), "reset"); got != "reset from 10.0.0.1" {
		t.Errorf("without a daemon: %s", got)
	}

	b.adopt(p)
	if after := b.dump(); after != before {
		t.Errorf("the rules are another:\n%s\nbefore they were:\n%s", after, before)
	}
	if got := b.denials(); !slices.Equal(got, []string{"forbidden_address 10.0.0.1 443 tcp x2"}) {
		t.Errorf("denied is %q", got)
	}
	for _, dst := range []string{"203.0.113.9", "192.0.2.1"} {
		if got := b.ask(b.honest(unix.IPPROTO_TCP, dst, 443), "open"); got != "open from "+dst {
			t.Errorf("with the next daemon: %s", got)
		}
	}

	// Somebody has been at the rules.
	err := b.ns.do(func() error {
		return b.batch(func(conn *nftConn) error {
			conn.FlushChain(b.rules.chains[1].Chain)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.verify(p); !errors.Is(err, errDiffers) {
		t.Errorf("a change is not seen: %v", err)
	}
	b.adopt(p)
	if err := b.verify(p); err != nil {
		t.Error(err)
	}
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "192.0.2.1", 443), "open"); got != "open from 192.0.2.1" {
		t.Errorf("with rules put up anew: %s", got)
	}
	// The record says something else than the rules.
	b.adopt(policyFor(t, sandbox.Egress{}))
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "203.0.113.9", 443), "reset"); got != "reset from 203.0.113.9" {
		t.Errorf("with the record's policy: %s", got)
	}
}

func TestRealFaults(t *testing.T) {
	p := policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{rangeRule("203.0.113.0/24", sandbox.TCP, 443)}})
	for _, point := range FaultPoints {
		t.Run(point, func(t *testing.T) {
			var faults fault.Set
			faults.Fail(point)
			vmm := newVMM(t)
			cfg := kernelConfig{ipv6: true, log: quietLog(), faults: &faults}
			files := openFiles(t)
			if _, _, err := attachKernel(t.Context(), cfg, vmm, p); err == nil {
				t.Fatal("it was attached")
			} else if _, injected := errors.AsType[*fault.Error](err); !injected {
				t.Fatal(err)
			}
			if got := left(t, vmm); got != "" {
				t.Errorf("left: %s", got)
			}
			if got := openFiles(t); got != files {
				t.Errorf("%d files are open, %d were before", got, files)
			}
			k, s, err := attachKernel(t.Context(), kernelConfig{ipv6: true, log: quietLog()}, vmm, p)
			if err != nil {
				t.Fatalf("after that: %v", err)
			}
			if err := errors.Join(s.close(), k.close()); err != nil {
				t.Fatal(err)
			}
			if point == FaultTAP {
				return // there is none to make
			}
			if _, _, err := adoptKernel(t.Context(), cfg, vmm, p); err == nil {
				t.Fatal("it was adopted")
			}
			if got := openFiles(t); got != files {
				t.Errorf("%d files are open, %d were before", got, files)
			}
			k, s, err = adoptKernel(t.Context(), kernelConfig{ipv6: true, log: quietLog()}, vmm, p)
			if err != nil {
				t.Fatalf("after that: %v", err)
			}
			if err := errors.Join(k.verify(p), s.close(), k.close()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// left is what there is in a namespace beside what each begins with.
func left(t *testing.T, vmm VMM) string {
	t.Helper()
	ns, err := openNamespace(vmm.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.close() }()
	var found []string
	err = ns.do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Attrs().Name != "lo" || l.Attrs().Flags&net.FlagUp != 0 {
				found = append(found, fmt.Sprintf("%s %s", l.Attrs().Name, l.Attrs().Flags))
			}
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Table == localTable {
					found = append(found, r.String())
				}
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Table == unix.RT_TABLE_LOCAL {
					continue // which lo had when it was up
				}
				found = append(found, r.String())
			}
		}
		conn, err := (&kernel{ns: ns}).talk()
		if err != nil {
			return err
		}
		defer func() { _ = conn.CloseLasting() }()
		tables, err := conn.ListTables()
		for _, table := range tables {
			found = append(found, "table "+table.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, "; ")
}

// No thread stays behind in a namespace: the first one of the process would hold it
// for ever.
func TestRealThreadsComeBack(t *testing.T) {
	vmm := newVMM(t)
	ns, err := openNamespace(vmm.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.close() }()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	first := false
	for range 500 {
		err := ns.do(func() error {
			first = first || unix.Gettid() == os.Getpid()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		if at, err := os.Readlink(task); err == nil && at != home {
			t.Errorf("%s is %s, not %s", task, at, home)
		}
	}
	t.Logf("the first thread was used: %t", first)
}

// A process that shares the daemon's namespace is no VMM.
func TestRealOwnNamespaceIsRefused(t *testing.T) {
	testenv.Real(t)
	h, err := New(Config{Log: quietLog()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Attach(t.Context(), VMM{ID: "vm_x", PID: os.Getpid(), UID: 1}, sandbox.Egress{}); err == nil {
		t.Error("the host itself was given an interface")
	}
}

// Many rules are put up as one, and changed as one.
func TestRealManyRules(t *testing.T) {
	many := func(n, ports int) *policy {
		var e sandbox.Egress
		for i := range n {
			r := sandbox.EgressRule{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{203, byte(i >> 8), byte(i), 0}), 24)}
			for port := range ports {
				r.Ports = append(r.Ports, uint16(1+port*3+i%7))
			}
			e.Allow = append(e.Allow, r)
		}
		return policyFor(t, e)
	}
	b := attach(t, false, many(1, 1))
	for _, size := range [][2]int{{1, 1}, {100, 1}, {1000, 1}, {MaxRules, MaxRangePorts / MaxRules}} {
		start := time.Now()
		p := many(size[0], size[1])
		if err := b.set(p); err != nil {
			t.Fatal(err)
		}
		set := time.Since(start)
		if err := b.verify(p); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d rules of %d ports: set in %v, read back in %v", size[0], size[1], set, time.Since(start)-set)
	}
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "203.3.231.9", 1+999%7), "open"); got != "open from 203.3.231.9" {
		t.Errorf("the last rule: %s", got)
	}
}
