package egress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
	"github.com/emberd/emberd/internal/x/fault"
)

// quiet is how long a test waits for what must not come.
const quiet = 300 * time.Millisecond

// soon is how long it waits for what must.
const soon = 20 * time.Second

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newVMM starts a process that has a namespace of its own, as a VMM has.
func newVMM(t *testing.T) VMM {
	t.Helper()
	testenv.Real(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{standIn + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return VMM{ID: sandbox.VMID("vm_" + strings.ToLower(t.Name()[:8])), PID: cmd.Process.Pid, UID: 12345}
}

func policyFor(t *testing.T, e sandbox.Egress, ranges ...string) *policy {
	t.Helper()
	r := Ranges(parseAll(ranges...))
	resolved, err := r.Resolve(e, sandbox.Egress{})
	if err != nil {
		t.Fatal(err)
	}
	return newPolicy(resolved, r)
}

func rangeRule(text string, proto sandbox.Protocol, ports ...uint16) sandbox.EgressRule {
	return sandbox.EgressRule{CIDR: netip.MustParsePrefix(text), Protocol: proto, Ports: ports}
}

// bench is a kernel with its sockets, and the guest's end of the interface.
type bench struct {
	*testing.T
	*kernel
	vmm  VMM
	s    sockets
	tap  *os.File
	port uint16 // the guest's last
}

func attach(t *testing.T, ipv6 bool, p *policy) *bench {
	t.Helper()
	b := &bench{T: t, vmm: newVMM(t), port: 20000}
	var err error
	start := time.Now()
	if b.kernel, b.s, err = attachKernel(t.Context(), kernelConfig{ipv6: ipv6, log: quietLog()}, b.vmm, p); err != nil {
		t.Fatal(err)
	}
	t.Logf("attached in %v", time.Since(start))
	t.Cleanup(func() {
		if err := errors.Join(b.s.close(), b.close()); err != nil {
			t.Error(err)
		}
	})
	b.plug()
	return b
}

// plug opens the guest's end as Firecracker does: by name, from inside of the
// namespace, as the user that it belongs to, who has no privileges.
func (b *bench) plug() {
	b.Helper()
	err := b.ns.do(func() error {
		// The jail's is the user's own.
		fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		// Of this thread alone.
		become := func(uid int) {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				panic(errno)
			}
		}
		become(b.vmm.UID)
		defer become(0)
		req, err := unix.NewIfreq(TAP)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return errors.Join(fmt.Errorf("attach to %s: %w", TAP, err), unix.Close(fd))
		}
		b.tap = os.NewFile(uintptr(fd), TAP)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = b.tap.Close() })
	// The kernel sees to it a moment later that the interface sends.
	for end := time.Now().Add(soon); ; time.Sleep(time.Millisecond) {
		var state netlink.LinkOperState
		err := b.ns.do(func() error {
			tap, err := netlink.LinkByName(TAP)
			if err == nil {
				state = tap.Attrs().OperState
			}
			return err
		})
		if err != nil || time.Now().After(end) {
			b.Fatalf("%s is %s: %v", TAP, state, err)
		}
		if state != netlink.OperDown {
			return
		}
	}
}

// honest is a frame of a guest's that was not changed.
func (b *bench) honest(proto byte, dst string, port uint16) frame {
	b.port++
	f := frame{srcMAC: b.guest.MAC, dstMAC: b.guest.GatewayMAC, vlan: -1, src: b.guest.Addr, dst: netip.MustParseAddr(dst),
		proto: proto, srcPort: b.port, port: port, flags: tcpSYN, icmp: 8, seq: 1000}
	if f.dst.Is6() {
		f.src, f.icmp = b.guest.Addr6, 128
	}
	return f
}

func (b *bench) send(f frame) {
	b.Helper()
	if _, err := b.tap.Write(f.bytes()); err != nil {
		b.Fatal(err)
	}
}

// read returns the next frame for the guest, "nothing" if none comes for a while.
func (b *bench) read(wait time.Duration) (string, []byte) {
	b.Helper()
	if err := b.tap.SetReadDeadline(time.Now().Add(wait)); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := b.tap.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "nothing", nil
	}
	if err != nil {
		b.Fatal(err)
	}
	return heard(buf[:n])
}

// ask sends a frame and returns what comes back.
func (b *bench) ask(f frame, want string) string {
	b.Helper()
	b.send(f)
	wait := soon
	if want == "nothing" {
		wait = quiet
	}
	got, tcp := b.read(wait)
	for (f.proto == unix.IPPROTO_TCP || f.proto == unix.IPPROTO_UDP) && !strings.HasPrefix(got, "icmp") && got != "nothing" &&
		binary.BigEndian.Uint16(tcp[2:]) != f.srcPort {
		got, tcp = b.read(wait) // that was for somebody else
	}
	if strings.HasPrefix(got, "open") {
		// Or it would be offered again.
		f.flags, f.seq, f.ack = tcpRST, f.seq+1, binary.BigEndian.Uint32(tcp[4:])+1
		b.send(f)
	}
	return got
}

func (b *bench) counts() usage {
	b.Helper()
	used, err := b.used()
	if err != nil {
		b.Fatal(err)
	}
	return used
}

func (b *bench) denials() []string {
	b.Helper()
	list, err := b.denied()
	if err != nil {
		b.Fatal(err)
	}
	var all []string
	for _, d := range list {
		if d.Last.IsZero() || time.Since(d.Last) > time.Minute {
			b.Errorf("%v was refused last at %v", d, d.Last)
		}
		all = append(all, fmt.Sprintf("%s %s %d %s x%d", d.Reason, d.Addr, d.Port, d.Protocol, d.Count))
	}
	slices.Sort(all)
	return all
}

// What a guest sends reaches the relay only if the policy says so, and nothing
// else takes it.
func TestRealPackets(t *testing.T) {
	p := policyFor(t, sandbox.Egress{Allow: []sandbox.EgressRule{
		rangeRule("203.0.113.0/24", sandbox.TCP, 443, 5432), rangeRule("203.0.113.128/25", sandbox.TCP, 443),
		rangeRule("198.51.100.0/24", sandbox.UDP), rangeRule("2001:db8:1::/48", sandbox.TCP, 443),
		{Host: "api.example.org", Ports: []uint16{443}},
	}})
	b := attach(t, true, p)
	api := netip.MustParseAddr("192.0.2.10")
	if err := b.open(api, p.Allow[len(p.Allow)-1:], time.Minute); err != nil {
		t.Fatal(err)
	}
	go acceptAll(b.s.tcp)
	go answerAll(b)
	const tcp, udp, icmp, icmp6 = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	mac := func(m ...byte) func(*frame) { return func(f *frame) { f.srcMAC = m } }
	tests := []struct {
		name   string
		proto  byte
		dst    string
		port   uint16
		change func(*frame)
		want   string
		denied string // without the count
		forged bool
	}{
		{"a range", tcp, "203.0.113.9", 443, nil, "open from 203.0.113.9", "", false},
		{"a range in two rules", tcp, "203.0.113.200", 443, nil, "open from 203.0.113.200", "", false},
		{"another port of it", tcp, "203.0.113.9", 5432, nil, "open from 203.0.113.9", "", false},
		{"a port not of it", tcp, "203.0.113.9", 22, nil, "reset from 203.0.113.9", "no_rule 203.0.113.9 22 tcp", false},
		{"beside the range", tcp, "203.0.114.0", 443, nil, "reset from 203.0.114.0", "no_rule 203.0.114.0 443 tcp", false},
		{"a protocol not of it", udp, "203.0.113.9", 443, nil, "icmp 3/13", "no_rule 203.0.113.9 443 udp", false},
		{"any port of a range", udp, "198.51.100.7", 9, nil, `udp "198.51.100.7:9" from 198.51.100.7`, "", false},
		{"the protocol not of it", tcp, "198.51.100.7", 9, nil, "reset from 198.51.100.7", "no_rule 198.51.100.7 9 tcp", false},
		{"a name", tcp, "192.0.2.10", 443, nil, "open from 192.0.2.10", "", false},
		{"a port not of the name", tcp, "192.0.2.10", 80, nil, "reset from 192.0.2.10", "no_rule 192.0.2.10 80 tcp", false},
		{"the address beside", tcp, "192.0.2.11", 443, nil, "reset from 192.0.2.11", "no_rule 192.0.2.11 443 tcp", false},
		{"the resolver", udp, "100.64.0.1", 53, nil, `udp "dns" from 100.64.0.1`, "", false},
		{"the resolver by TCP", tcp, "100.64.0.1", 53, nil, "open from 100.64.0.1", "", false},
		{"another resolver", udp, "9.9.9.9", 53, nil, "icmp 3/13", "no_rule 9.9.9.9 53 udp", false},
		{"DNS over TLS", tcp, "9.9.9.9", 853, nil, "reset from 9.9.9.9", "no_rule 9.9.9.9 853 tcp", false},
		{"the gateway", tcp, "100.64.0.1", 22, nil, "reset from 100.64.0.1", "forbidden_address 100.64.0.1 22 tcp", false},
		{"the relay's own port", tcp, "100.64.0.1", relayPort, nil, "reset from 100.64.0.1", "forbidden_address 100.64.0.1 1024 tcp", false},
		{"the relay's own port elsewhere", tcp, "9.9.9.9", relayPort, nil, "reset from 9.9.9.9", "no_rule 9.9.9.9 1024 tcp", false},
		{"the relay itself", tcp, "127.0.0.1", relayPort, nil, "any", "forbidden_address 127.0.0.1 1024 tcp", false},
		{"metadata", tcp, "169.254.169.254", 80, nil, "reset from 169.254.169.254", "forbidden_address 169.254.169.254 80 tcp", false},
		{"a private address", tcp, "10.0.0.1", 443, nil, "reset from 10.0.0.1", "forbidden_address 10.0.0.1 443 tcp", false},
		{"another guest", tcp, "100.64.0.9", 443, nil, "reset from 100.64.0.9", "forbidden_address 100.64.0.9 443 tcp", false},
		{"itself", tcp, "GUEST", 443, nil, "any", "forbidden_address GUEST 443 tcp", false},
		{"broadcast", udp, "255.255.255.255", 67, nil, "any", "forbidden_address 255.255.255.255 67 udp", false},
		{"multicast", udp, "224.0.0.251", 5353, func(f *frame) { f.dstMAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb} }, "nothing", "forbidden_address 224.0.0.251 5353 udp", false},
		{"an allowed address by broadcast", udp, "198.51.100.7", 9, func(f *frame) { f.dstMAC = net.HardwareAddr{255, 255, 255, 255, 255, 255} }, "any", "no_rule 198.51.100.7 9 udp", false},
		{"ping", icmp, "203.0.113.9", 0, nil, "icmp 3/13", "no_rule 203.0.113.9 0 icmp", false},
		{"ping of the gateway", icmp, "100.64.0.1", 0, nil, "icmp 3/13", "forbidden_address 100.64.0.1 0 icmp", false},
		{"an answer to nothing", icmp, "203.0.113.9", 0, func(f *frame) { f.icmp = 0 }, "nothing", "", false},
		{"another protocol", 47, "203.0.113.9", 0, func(f *frame) { f.payload = make([]byte, 20) }, "icmp 3/13", "no_rule 203.0.113.9 0 47", false},
		{"what goes on from nothing", tcp, "203.0.114.9", 443, func(f *frame) { f.flags = tcpACK }, "reset from 203.0.114.9", "", false},
		{"wrong MAC", tcp, "203.0.113.9", 443, mac(2, 1, 2, 3, 4, 5), "nothing", "", true},
		{"the gateway's MAC", tcp, "203.0.113.9", 443, mac(gatewayMAC...), "nothing", "", true},
		{"wrong source", tcp, "203.0.113.9", 443, func(f *frame) { f.src = netip.MustParseAddr("100.64.0.77") }, "nothing", "", true},
		{"the gateway as source", tcp, "203.0.113.9", 443, func(f *frame) { f.src = gateway }, "nothing", "", true},
		{"a destination as source", tcp, "203.0.113.9", 443, func(f *frame) { f.src = f.dst }, "nothing", "", true},
		{"first fragment", udp, "198.51.100.7", 9, func(f *frame) { f.fragment = 0x2000 }, "nothing", "", true},
		{"last fragment", udp, "198.51.100.7", 9, func(f *frame) { f.fragment = 3 }, "nothing", "", true},
		{"source route", tcp, "203.0.113.9", 443, func(f *frame) { f.options = []byte{0x83, 7, 4, 10, 0, 0, 1, 0} }, "nothing", "", true},
		{"not for the gateway's MAC", tcp, "203.0.113.9", 443, func(f *frame) { f.dstMAC = net.HardwareAddr{2, 9, 9, 9, 9, 9} }, "nothing", "", false},
		{"VLAN", tcp, "203.0.113.9", 443, func(f *frame) { f.vlan = 5 }, "nothing", "", false},
		{"VLAN 0 is none", tcp, "203.0.113.9", 22, func(f *frame) { f.vlan = 0 }, "reset from 203.0.113.9", "no_rule 203.0.113.9 22 tcp", false},
		{"ARP", 0, "203.0.113.9", 0, func(f *frame) { f.ethertype, f.payload = 0x0806, arpRequest(b.guest) }, "nothing", "", false},
		{"LLDP", 0, "203.0.113.9", 0, func(f *frame) { f.ethertype, f.payload = 0x88cc, make([]byte, 60) }, "nothing", "", false},
		{"an IPv6 range", tcp, "2001:db8:1::9", 443, nil, "open from 2001:db8:1::9", "", false},
		{"IPv6 beside it", tcp, "2001:db8:2::9", 443, nil, "reset from 2001:db8:2::9", "no_rule 2001:db8:2::9 443 tcp", false},
		{"IPv6 by UDP", udp, "2001:db8:1::9", 443, nil, "icmp 1/1", "no_rule 2001:db8:1::9 443 udp", false},
		{"an IPv4 address in IPv6", tcp, "::ffff:203.0.113.9", 443, nil, "any", "forbidden_address ::ffff:203.0.113.9 443 tcp", false},
		{"NAT64", tcp, "64:ff9b::cb00:7109", 443, nil, "reset from 64:ff9b::cb00:7109", "forbidden_address 64:ff9b::cb00:7109 443 tcp", false},
		{"IPv6 link-local", tcp, "fe80::1", 443, nil, "any", "forbidden_address fe80::1 443 tcp", false},
		{"ping by IPv6", icmp6, "2001:db8:1::9", 0, nil, "icmp 1/1", "no_rule 2001:db8:1::9 0 icmp", false},
		{"router solicitation", icmp6, "ff02::2", 0, func(f *frame) { f.icmp, f.src = 133, netip.IPv6Unspecified() }, "nothing", "", false},
		{"neighbour advertisement", icmp6, "fd00:656d::1", 0, func(f *frame) { f.icmp, f.payload = 136, make([]byte, 24) }, "nothing", "", false},
		{"wrong IPv6 source", tcp, "2001:db8:1::9", 443, func(f *frame) { f.src = netip.MustParseAddr("fd00:656d::9") }, "nothing", "", true},
		{"IPv6 fragment", 44, "2001:db8:1::9", 443, func(f *frame) { f.payload = append([]byte{6, 0, 0, 1, 0, 0, 0, 1}, make([]byte, 24)...) }, "nothing", "", true},
		{"IPv6 routing header", 43, "2001:db8:1::9", 443, func(f *frame) { f.payload = append([]byte{6, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 20)...) }, "nothing", "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := func(s string) string { return strings.ReplaceAll(s, "GUEST", b.guest.Addr.String()) }
			before, denials := b.counts(), b.denials()
			f := b.honest(tt.proto, name(tt.dst), tt.port)
			if tt.change != nil {
				tt.change(&f)
			}
			// Nothing comes from the test before.
			for {
				if got, _ := b.read(time.Millisecond); got == "nothing" {
					break
				}
			}
			if got := b.ask(f, strings.Replace(tt.want, "any", "nothing", 1)); got != tt.want && (tt.want != "any" || strings.HasPrefix(got, "open") || strings.HasPrefix(got, "udp")) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			after := b.counts()
			if got := after.Forged - before.Forged; (got == 1) != tt.forged {
				t.Errorf("%d packets count as forged", got)
			}
			var fresh []string
			for _, d := range b.denials() {
				if !slices.Contains(denials, d) {
					fresh = append(fresh, d[:strings.LastIndex(d, " ")])
				}
			}
			if got := strings.Join(fresh, ", "); got != name(tt.denied) {
				t.Errorf("denied is %q, want %q", got, name(tt.denied))
			}
		})
	}
}

func arpRequest(g Guest) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, g.MAC...), g.Addr.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), g.Gateway.AsSlice()...)
}

func acceptAll(listeners []net.Listener) {
	for _, l := range listeners {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
	}
}

// answerAll answers each datagram with where it was for, from there.
func answerAll(b *bench) {
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := b.s.dnsUDP.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = b.s.dnsUDP.WriteTo([]byte("dns"), from)
		}
	}()
	for _, c := range b.s.udp {
		go func() {
			for {
				_, from, to, err := readUDP(c)
				if err != nil {
					return
				}
				r, err := b.s.reply(to, from)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = r.Write([]byte(to.String()))
				_ = r.Close()
			}
		}()
	}
}

// readUDP returns a datagram, who sent it, and where to.
func readUDP(c *net.UDPConn) (data []byte, from, to netip.AddrPort, err error) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
	if err != nil {
		return nil, from, to, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, from, to, err
	}
	for _, m := range messages {
		switch sa := m.Data; {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR:
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), binary.BigEndian.Uint16(sa[2:]))
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR:
			to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(sa[8:24])), binary.BigEndian.Uint16(sa[2:]))
		}
	}
	return buf[:n], from, to, nil
}

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
