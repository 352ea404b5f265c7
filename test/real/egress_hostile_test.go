package real

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// sniffing prints how many frames come to a guest that asks for none, and the first
// of them, until a file is there.
const sniffing = `
import os, socket, struct, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 0))
s.setsockopt(263, 1, struct.pack("IHH8s", socket.if_nametoindex("eth0"), 1, 0, b""))
s.settimeout(0.2)
print("sniffing", flush=True)
seen = []
while not os.path.exists("/tmp/enough"):
    try:
        frame, where = s.recvfrom(2000)
    except TimeoutError:
        continue
    if where[2] != socket.PACKET_OUTGOING:
        seen.append(frame.hex())
print("seen", len(seen), *seen[:3], flush=True)
`

// spoofing sends frames, in hex, as they are, some times over.
const spoofing = `
import json, socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
frames = [bytes.fromhex(f) for f in json.loads(%q)]
sent = 0
for _ in range(%d):
    for f in frames:
        s.send(f)
        sent += 1
print("sent", sent)
`

// changed has a guest have another MAC, another address, or both, and tries to
// reach what it may reach.
const changed = `
import fcntl
def change(mac=None, addr=None):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if mac:
        fcntl.ioctl(s, 0x8924, struct.pack("16sH6s232x", b"eth0", 1, bytes.fromhex(mac)))
    if addr:
        fcntl.ioctl(s, 0x8916, struct.pack("16sHH4s232x", b"eth0", 2, 0, socket.inet_aton(addr)))
    return "ok"
PATIENCE = 4
`

// A guest that forges who it is reaches nothing as anybody else, and is heard by
// nobody: not by its neighbour, not by the host, not by the world.
func TestEgressSpoofing(t *testing.T) {
	n := newInternet(t)
	n.Host("api.example.org", "203.0.113.10")
	h := newHost(t, patient, online)
	open := policy(t, `[{"host": "api.example.org"}, {"cidr": "198.51.100.0/24"}, {"cidr": "203.0.113.250/32"}, {"cidr": "203.0.113.250/32", "protocol": "udp"}]`)
	ids := make([]string, 2)
	for i := range ids {
		var err error
		if ids[i], err = h.Create(t.Context(), "python", client.WithEgress(open)); err != nil {
			t.Fatal(err)
		}
	}
	attacker, neighbour := ids[0], ids[1]
	needFrames(t, h.Client, attacker)
	checkWorks(t, h.Client, n, attacker, true)
	own := strings.Fields(h.run(t, attacker, ownAddresses))
	others := strings.Fields(h.run(t, neighbour, ownAddresses))
	mac, err := net.ParseMAC(own[0])
	if err != nil {
		t.Fatal(err)
	}
	theirMAC, err := net.ParseMAC(others[0])
	if err != nil {
		t.Fatal(err)
	}
	heard := h.sniff(t, neighbour)
	n.Forget()

	self, them := netip.MustParseAddr(own[1]), netip.MustParseAddr(others[1])
	var frames []string
	for _, f := range forgedFrames(mac, theirMAC, self, them) {
		frames = append(frames, hex.EncodeToString(f))
	}
	list, err := json.Marshal(frames)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d kinds of frames: %s", len(frames), h.run(t, attacker, fmt.Sprintf(spoofing, list, 20)))
	if sent := n.Sent(); len(sent) > 0 {
		t.Errorf("forged frames became %v", sent)
	}
	for _, as := range []string{
		`change(mac="` + strings.ReplaceAll(others[0], ":", "") + `")`,
		`change(mac="` + strings.ReplaceAll(own[0], ":", "") + `", addr="` + others[1] + `")`,
		`change(addr="100.64.0.1")`, `change(addr="203.0.113.10")`, `change(addr="192.0.2.2")`,
	} {
		h.run(t, attacker, tries+changed+as)
		out := h.exec(t, attacker, tries+"PATIENCE = 4\nprint(outcome('tcp', dict(host='198.51.100.1', port=9000)))\nprint(outcome('dns', dict(name='api.example.org', server='100.64.0.1')))")
		if strings.Contains(string(out.Stdout), "ok ") {
			t.Errorf("%s: %s", as, out.Stdout)
		}
		if sent := n.Sent(); len(sent) > 0 {
			t.Errorf("%s: %v was sent", as, sent)
		}
	}
	if got := heard(); !strings.HasPrefix(got, "seen 0") {
		t.Errorf("the neighbour has %s", got)
	}
	checkWorks(t, h.Client, n, neighbour, true)
}

// forgedFrames are what a guest sends that wants to be another, or to be taken for
// the gateway.
func forgedFrames(mac, theirMAC net.HardwareAddr, self, them netip.Addr) [][]byte {
	to := netip.MustParseAddrPort("198.51.100.1:9000")
	allowed := func(src netip.Addr) []byte { return ip4(src, to.Addr(), 6, syn(src, to)) }
	fragment := ip4(self, to.Addr(), 6, syn(self, to))
	fragment[6], fragment[10], fragment[11] = 0x20, 0, 0
	sum := checksum(fragment[:20])
	fragment[10], fragment[11] = byte(sum>>8), byte(sum)
	return append(hostileFrames(mac, them),
		ether(gatewayMAC, theirMAC, 0x0800, allowed(self)),
		ether(gatewayMAC, theirMAC, 0x0800, allowed(them)),
		ether(gatewayMAC, gatewayMAC, 0x0800, allowed(gatewayIP)),
		ether(theirMAC, mac, 0x0800, ip4(self, them, 17, udpDatagram(self, netip.AddrPortFrom(them, 9), []byte("hello, neighbour")))),
		ether(gatewayMAC, mac, 0x0800, ip4(self, them, 17, udpDatagram(self, netip.AddrPortFrom(them, 9), []byte("hello, neighbour")))),
		ether(gatewayMAC, mac, 0x0800, fragment),
		ether(broadcast, mac, 0x0806, arp(mac, gatewayIP)), ether(broadcast, mac, 0x0806, arp(mac, them)), ether(theirMAC, mac, 0x0806, arp(mac, gatewayIP)),
		ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, 0x86dd, ip6("fe80::1", "ff02::1", 58, []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})),
		ether(broadcast, mac, 0x0800, ip4(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 17, udpDatagram(self, netip.MustParseAddrPort("255.255.255.255:67"), make([]byte, 240)))),
		ether(broadcast, mac, 0x0800, ip4(gatewayIP, them, 17, udpDatagram(self, netip.AddrPortFrom(them, 68), make([]byte, 240)))),
		ether(gatewayMAC, mac, 0x8100, append([]byte{0, 5, 8, 0}, allowed(self)...)),
		ether(theirMAC, mac, 0x8100, append([]byte{0, 7, 8, 0}, allowed(self)...)),
		ether(broadcast, mac, 0x88cc, make([]byte, 60)),
		ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, mac, 0x0026, make([]byte, 60)),
	)
}

// sniff has a guest note the frames that it is sent. The function that it returns
// ends that, and tells.
func (h *host) sniff(t *testing.T, id string) (heard func() string) {
	t.Helper()
	ex, err := h.StartExec(t.Context(), id, client.Program{Code: sniffing, Timeout: 10 * time.Minute}, false)
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Output(t.Context(), id, ex, client.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	l := newLines(out)
	if !l.await(t, "sniffing", time.Minute) {
		t.Fatal("the neighbour does not listen")
	}
	return func() string {
		defer out.Close()
		time.Sleep(500 * time.Millisecond) // for what is on its way
		h.run(t, id, "open('/tmp/enough', 'w')")
		if !l.await(t, "seen", time.Minute) {
			t.Fatal("the neighbour does not tell")
		}
		return strings.TrimSpace(strings.TrimPrefix(l.all(), "sniffing\n"))
	}
}

// netFloods are what a guest does to its network for some seconds.
var netFloods = []struct{ what, code string }{
	{"frames to nobody", `
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
frame = bytes.fromhex("02656d000001020000000001080045") + bytes(60)
while time.monotonic() < until:
    try: s.send(frame); n += 1
    except OSError: pass`},
	{"datagrams to where it may not go", `
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while time.monotonic() < until:
    try: s.sendto(b"x" * 18, ("203.0.113.%d" % (n % 250), 1 + n % 60000)); n += 1
    except OSError: pass`},
	{"datagrams to where it may go", `
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while time.monotonic() < until:
    try: s.sendto(b"x" * 18, ("198.51.100.1", 4500)); n += 1
    except OSError: pass`},
	{"flows of datagrams", `
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8000, 8000))
held = []
while time.monotonic() < until:
    try:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.sendto(b"x", ("198.51.100.%d" % (n % 250), 4500))
        held = held[-3000:] + [s]
        n += 1
    except OSError: pass`},
	{"connections that are never used", `
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8000, 8000))
held = []
while time.monotonic() < until:
    try:
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(("198.51.100.%d" % (n % 250), 9000))
        held = held[-3000:] + [s]
        n += 1
    except OSError: pass`},
	{"names", `
while time.monotonic() < until:
    try:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.sendto(struct.pack(">HHHHHH", n & 65535, 256, 1, 0, 0, 0) + b"\3api\7example\3org\0\0\1\0\1", ("100.64.0.1", 53))
        s.close()
        n += 1
    except OSError: pass`},
}

// A guest that floods its network harms nobody: its neighbour's programs and
// network, and the daemon, answer, and its own network is back when it stops.
func TestEgressFloods(t *testing.T) {
	n := newInternet(t)
	n.Host("api.example.org", "203.0.113.10")
	h := newHost(t, patient, online)
	open := policy(t, `[{"host": "api.example.org"}, {"cidr": "198.51.100.0/24"}, {"cidr": "198.51.100.0/24", "protocol": "udp"}]`)
	ids := make([]string, 2)
	for i := range ids {
		var err error
		if ids[i], err = h.Create(t.Context(), "python", client.WithEgress(open)); err != nil {
			t.Fatal(err)
		}
	}
	attacker, neighbour := ids[0], ids[1]
	needFrames(t, h.Client, attacker)
	idle, _ := h.whileFlooded(t, neighbour, func() { time.Sleep(span(4*time.Second, 20*time.Second)) })
	t.Logf("idle: the neighbour's exec: %v", idle)
	// As in TestBombs: seconds are too few for a p99.
	slowest := span(max(10*idle.Percentile(99), 3*time.Second), 3*idle.Percentile(99))
	for _, f := range netFloods {
		seconds := span(3, 20)
		var said string
		execs, health := h.whileFlooded(t, neighbour, func() {
			said = h.run(t, attacker, fmt.Sprintf("import socket, struct, time\nn, until = 0, time.monotonic() + %d%s\nprint(n)", seconds, f.code))
		})
		began := time.Now()
		checkWorks(t, h.Client, n, attacker, true)
		t.Logf("%s: %s a second; neighbour's exec: %v (%.1f times idle); /healthz: %v; its own network worked again after %v", f.what,
			strings.TrimSpace(said)+fmt.Sprintf("/%d", seconds), execs, float64(execs.Percentile(99))/float64(idle.Percentile(99)), health, time.Since(began).Round(time.Millisecond))
		oracle.Report(t, append(execs.Findings("the neighbour's exec under "+f.what, slowest), health.Findings("/healthz", span(2*time.Second, time.Second))...))
	}
	checkWorks(t, h.Client, n, neighbour, true)
	denials, err := h.EgressDenials(t.Context(), attacker)
	if err != nil || len(denials) == 0 || len(denials) > 2000 {
		t.Errorf("%d denials are told of, %v", len(denials), err)
	}
}

// whileFlooded has the neighbour run programs and the daemon asked how it is, while
// something goes on.
func (h *host) whileFlooded(t *testing.T, neighbour string, goOn func()) (execs, health oracle.Timing) {
	t.Helper()
	asked := oracle.Watch(t.Context(), 100*time.Millisecond, func(ctx context.Context) error {
		res, err := h.Exec(ctx, neighbour, client.Program{Code: "print('ok')"})
		if err == nil && string(res.Stdout) != "ok\n" {
			err = errors.New("wrong output " + string(res.Stdout) + res.Err)
		}
		return err
	})
	healthy := oracle.Watch(t.Context(), 100*time.Millisecond, h.Healthy)
	goOn()
	return asked.Stop(), healthy.Stop()
}

// checkWorksAgain makes a sandbox and has it reach something.
func checkWorksAgain(t *testing.T, h *host, open rest.EgressRequest) {
	t.Helper()
	id, err := h.Create(t.Context(), "python", client.WithEgress(open))
	if err != nil {
		t.Fatal(err)
	}
	if outcomes, _ := try(t, h.Client, id, nil, tcpOp("198.51.100.1", 9000)); !strings.HasPrefix(outcomes[0], "ok hello") {
		t.Error(outcomes[0])
	}
	if err := h.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
}
