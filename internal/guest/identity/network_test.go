package identity

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

func validNetwork() *agentv1.Network {
	return &agentv1.Network{
		Mac: []byte{2, 1, 2, 3, 4, 5}, GatewayMac: []byte{2, 0x65, 0x6d, 0, 0, 1},
		Address: []byte{100, 65, 1, 2}, Gateway: []byte{100, 64, 0, 1},
		Address6: netip.MustParseAddr("fd00:656d::102").AsSlice(), Gateway6: netip.MustParseAddr("fd00:656d::1").AsSlice(),
	}
}

func TestBoundsOfTheNetwork(t *testing.T) {
	tests := map[string]func(*agentv1.Network){
		"MAC address ":                           func(n *agentv1.Network) { n.Mac = nil },
		"MAC address 0201020304 ":                func(n *agentv1.Network) { n.Mac = n.Mac[:5] },
		"MAC address 000000000000":               func(n *agentv1.Network) { n.Mac = make([]byte, 6) },
		"MAC address 030102030405":               func(n *agentv1.Network) { n.Mac[0] |= 1 },
		"gateway's MAC address ffffffffffff":     func(n *agentv1.Network) { n.GatewayMac = bytes.Repeat([]byte{0xff}, 6) },
		"gateway's MAC address 02656d0000010000": func(n *agentv1.Network) { n.GatewayMac = append(n.GatewayMac, 0, 0) },
		"address ":                               func(n *agentv1.Network) { n.Address = nil },
		"address 7f000001":                       func(n *agentv1.Network) { n.Address = []byte{127, 0, 0, 1} },
		"address e0000001":                       func(n *agentv1.Network) { n.Address = []byte{224, 0, 0, 1} },
		"address ffffffff":                       func(n *agentv1.Network) { n.Address = []byte{255, 255, 255, 255} },
		"address 00000000":                       func(n *agentv1.Network) { n.Address = make([]byte, 4) },
		"address fd00656d":                       func(n *agentv1.Network) { n.Address = n.Address6 },
		"gateway a9fe0001":                       func(n *agentv1.Network) { n.Gateway = []byte{169, 254, 0, 1} },
		"gateway's address 64400001":             func(n *agentv1.Network) { n.Address = n.Gateway },
		"IPv6 address ":                          func(n *agentv1.Network) { n.Address6 = nil },
		"IPv6 gateway ":                          func(n *agentv1.Network) { n.Gateway6 = nil },
		"IPv6 address 6441":                      func(n *agentv1.Network) { n.Address6 = n.Address },
		"IPv6 address 00000000000000000000ffff": func(n *agentv1.Network) {
			n.Address6 = netip.MustParseAddr("::ffff:1.2.3.4").AsSlice()
		},
		"IPv6 gateway fe80":       func(n *agentv1.Network) { n.Gateway6 = netip.MustParseAddr("fe80::1").AsSlice() },
		"gateway's IPv6 address ": func(n *agentv1.Network) { n.Address6 = n.Gateway6 },
	}
	for want, spoil := range tests {
		taker, taken := recorder("")
		id := valid()
		id.Network = validNetwork()
		spoil(id.Network)
		if err := taker.Take(id); err == nil || !strings.Contains(err.Error()+" ", want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
		if len(*taken) > 0 {
			t.Errorf("%s: steps were taken: %q", want, *taken)
		}
	}
	for name, change := range map[string]func(*agentv1.Network){
		"both":    func(*agentv1.Network) {},
		"no IPv6": func(n *agentv1.Network) { n.Address6, n.Gateway6 = nil, nil },
	} {
		id := valid()
		id.Network = validNetwork()
		change(id.Network)
		if err := check(id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ownNetwork is set in a test binary that has a network namespace of its own.
const ownNetwork = "EMBERD_TEST_OWN_NETWORK"

// The interface of a network namespace becomes what it is told to be, again and
// again, and with nothing left of the time before.
func TestNetwork(t *testing.T) {
	if os.Getenv(ownNetwork) == "" {
		withOwnNetwork(t)
		return
	}
	s := &system{root: t.TempDir()}
	if err := s.configureNetwork(valid()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("where no interfaces can be looked for: %v", err)
	}
	if err := os.Symlink("/proc", filepath.Join(s.root, "proc")); err != nil {
		t.Fatal(err)
	}
	if err := s.configureNetwork(valid()); err != nil {
		t.Fatalf("without an interface: %v", err)
	}
	armed := valid()
	armed.Network = validNetwork()
	if err := s.configureNetwork(armed); !errors.Is(err, unix.ENODEV) {
		t.Errorf("an interface that is not there: %v", err)
	}
	makeTAP(t)
	for _, link := range []struct{ name, to string }{{"etc/resolv.conf", "/nowhere"}} {
		path := filepath.Join(s.root, link.name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(link.to, path)); err != nil {
			t.Fatal(err)
		}
	}
	only4 := valid()
	only4.Network = validNetwork()
	only4.Network.Mac[5], only4.Network.Address[3] = 9, 9
	only4.Network.Address6, only4.Network.Gateway6 = nil, nil
	const routes4 = "default via 100.64.0.1 proto static\n100.64.0.1 proto static scope link\n"
	for _, tt := range []struct {
		name  string
		id    *agentv1.Arm
		addrs string
		want  map[string]string
	}{
		{"first", armed, "100.65.1.2/32 fd00:656d::102/128", map[string]string{
			"-4 route show dev eth0": routes4,
			"-6 route show dev eth0": "fd00:656d::1 proto static metric 1024 pref medium\n" +
				"fd00:656d::102 proto kernel metric 256 pref medium\ndefault via fd00:656d::1 proto static metric 1024 pref medium\n",
			"neigh show dev eth0 nud permanent": "100.64.0.1 lladdr 02:65:6d:00:00:01 PERMANENT\nfd00:656d::1 lladdr 02:65:6d:00:00:01 PERMANENT\n",
		}},
		{"another, without IPv6", only4, "100.65.1.9/32", map[string]string{
			"-4 route show dev eth0": routes4, "-6 route show dev eth0": "",
			"neigh show dev eth0 nud permanent": "100.64.0.1 lladdr 02:65:6d:00:00:01 PERMANENT\n",
		}},
		{"the first again", armed, "100.65.1.2/32 fd00:656d::102/128", nil},
		{"the same again", armed, "100.65.1.2/32 fd00:656d::102/128", nil},
		{"none", valid(), "", map[string]string{"-4 route show dev eth0": "", "-6 route show dev eth0": "", "neigh show dev eth0": ""}},
	} {
		if err := s.configureNetwork(tt.id); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		for args, want := range tt.want {
			if got := showNetwork(t, args); got != want {
				t.Errorf("%s: ip %s:\n%swant\n%s", tt.name, args, got, want)
			}
		}
		dev, err := net.InterfaceByName(nic)
		if err != nil {
			t.Fatal(err)
		}
		n := tt.id.GetNetwork()
		if up := dev.Flags&net.FlagUp != 0; up != (n != nil) {
			t.Errorf("%s: it is up: %v", tt.name, up)
		}
		if n == nil {
			continue
		}
		addrs, err := dev.Addrs()
		var got []string
		for _, a := range addrs {
			got = append(got, a.String())
		}
		if joined := strings.Join(got, " "); err != nil || joined != tt.addrs {
			t.Errorf("%s: addresses %s, %v, want %s", tt.name, joined, err, tt.addrs)
		}
		if !bytes.Equal(dev.HardwareAddr, n.GetMac()) {
			t.Errorf("%s: MAC address %v", tt.name, dev.HardwareAddr)
		}
		if link := showNetwork(t, "link show dev eth0"); !strings.Contains(link, "NOARP") {
			t.Errorf("%s: it asks for neighbours: %s", tt.name, link)
		}
		conf, err := os.ReadFile(filepath.Join(s.root, resolvConf))
		if err != nil || string(conf) != "nameserver 100.64.0.1\n" {
			t.Errorf("%s: %q, %v", tt.name, conf, err)
		}
	}
}

// makeTAP makes eth0 a TAP that ends with the process.
func makeTAP(t *testing.T) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("this host has no TUN: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	req, err := unix.NewIfreq(nic)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
}

// showNetwork is what iproute2 says, without the spaces at the ends of its lines.
func showNetwork(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).Output()
	if err != nil {
		t.Fatalf("ip %s: %v", args, err)
	}
	return strings.ReplaceAll(strings.ReplaceAll(string(out), "  ", " "), " \n", "\n")
}

// withOwnNetwork runs the test t once more, as root of namespaces of its own.
func withOwnNetwork(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("this host has no iproute2")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), ownNetwork+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{HostID: uid, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC):
		t.Skipf("this host grants no namespaces: %v", err)
	case err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Errorf("%v\n%s", err, out)
	}
}
