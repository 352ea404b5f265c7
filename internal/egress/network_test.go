package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

func newHost(t *testing.T, cfg Config) *Host {
	t.Helper()
	cfg.Log = quietLog()
	cfg.DNS = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")} // nobody is there
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestNewRefusesLimitsThatNoPolicyHas(t *testing.T) {
	for _, defaults := range []sandbox.Egress{{RateKiBps: -1}, {RateKiBps: MaxRateKiBps + 1}, {TotalMiB: -1}, {TotalMiB: MaxTotalMiB + 1}} {
		if _, err := New(Config{Log: quietLog(), Defaults: defaults}); err == nil {
			t.Errorf("%+v is taken", defaults)
		}
	}
}

func TestResolveBoundsWhatTheKernelHasToChange(t *testing.T) {
	h := newHost(t, Config{Defaults: sandbox.Egress{RateKiBps: 7}})
	var e sandbox.Egress
	for i := range MaxRangePorts / 8 {
		rule := rangeRule(netip.PrefixFrom(netip.AddrFrom4([4]byte{203, byte(i >> 8), byte(i), 0}), 24).String(), sandbox.TCP)
		for port := range 8 {
			rule.Ports = append(rule.Ports, uint16(port+1))
		}
		e.Allow = append(e.Allow, rule)
	}
	got, err := h.Resolve(e)
	if err != nil || got.RateKiBps != 7 {
		t.Fatalf("got %d, %v", got.RateKiBps, err)
	}
	e.Allow = append(e.Allow, rangeRule("198.51.100.0/24", sandbox.TCP))
	_, err = h.Resolve(e)
	if code, text := sandbox.Public(err); code != sandbox.CodeInvalid || !strings.Contains(text, "4097 ports") || !strings.Contains(text, "4096") {
		t.Errorf("got %v", err)
	}
	// Names cost nothing until they are resolved.
	e.Allow[len(e.Allow)-1] = sandbox.EgressRule{Host: "example.org"}
	if _, err := h.Resolve(e); err != nil {
		t.Error(err)
	}
}

func TestResolveTakesIPv6WhereItPasses(t *testing.T) {
	asked := sandbox.Egress{Allow: []sandbox.EgressRule{{Host: "example.org"}, rangeRule("2001:db8::/32", sandbox.TCP, 443)}}
	if got, err := newHost(t, Config{IPv6: true}).Resolve(asked); err != nil || len(got.Allow) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err := newHost(t, Config{}).Resolve(asked)
	if code, text := sandbox.Public(err); code != sandbox.CodeInvalid || !strings.Contains(text, "2001:db8::/32 is IPv6") || !strings.Contains(text, "--egress-ipv6") {
		t.Errorf("got %v", err)
	}
}

func TestRealNetwork(t *testing.T) {
	h := newHost(t, Config{IPv6: true})
	policy, err := h.Resolve(sandbox.Egress{Allow: []sandbox.EgressRule{rangeRule("203.0.113.0/24", sandbox.TCP, 443)}})
	if err != nil {
		t.Fatal(err)
	}
	vmm := newVMM(t)
	files := openFiles(t)
	n, err := h.Attach(t.Context(), vmm, policy)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, kernel: n.kernel, vmm: vmm, port: 20000}
	b.plug()
	if got, want := n.Guest().Addr, GuestOf(vmm.ID).Addr; got != want {
		t.Errorf("the guest is %s, want %s", got, want)
	}
	if _, err := h.Attach(t.Context(), vmm, policy); err == nil {
		t.Error("it has two interfaces")
	}
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "198.51.100.7", 22), "reset"); got != "reset from 198.51.100.7" {
		t.Errorf("got %s", got)
	}
	refused := func(d sandbox.EgressDenial) bool {
		return d.Addr == netip.MustParseAddr("198.51.100.7") && d.Port == 22 && d.Count == 1 && d.Reason == sandbox.DeniedNoRule &&
			d.Rule != nil && d.Rule.CIDR.String() == "198.51.100.7/32" && slices.Equal(d.Rule.Ports, []uint16{22})
	}
	if got := n.Denials(); len(got) != 1 || !refused(got[0]) {
		t.Errorf("denied is %+v", got)
	}
	// What the denial asks for is a rule that allows it.
	allowed, err := h.Resolve(sandbox.Egress{Allow: []sandbox.EgressRule{*n.Denials()[0].Rule}})
	if err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Set(cancelled, allowed); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := n.Set(t.Context(), allowed); err != nil {
		t.Fatal(err)
	}
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "198.51.100.7", 22), "open"); got != "open from 198.51.100.7" {
		t.Errorf("got %s", got)
	}
	if got := b.ask(b.honest(unix.IPPROTO_TCP, "203.0.113.9", 443), "reset"); got != "reset from 203.0.113.9" {
		t.Errorf("got %s", got)
	}
	stats, err := n.Stats()
	if err != nil || stats.Refused != 2 || stats.Bytes == 0 || stats.Forged != 0 {
		t.Errorf("got %+v, %v", stats, err)
	}
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Error(err)
	}
	if err := n.Set(t.Context(), policy); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	_ = b.tap.Close()
	if got := openFiles(t); got != files {
		t.Errorf("%d files are open, %d were before", got, files)
	}
	next, err := h.Adopt(t.Context(), vmm, allowed)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(next.kernel.verify(newPolicy(allowed, nil)), next.Close()); err != nil {
		t.Error(err)
	}
}

// Many at a time do not get into each other's way, and leave nothing.
func TestRealManyNetworks(t *testing.T) {
	h := newHost(t, Config{})
	files := -1
	for range 4 {
		var vmms []VMM
		for range 8 {
			vmms = append(vmms, newVMM(t))
		}
		if files < 0 {
			files = openFiles(t)
		}
		done := make(chan error)
		for i, vmm := range vmms {
			vmm.ID += sandbox.VMID(rune('a' + i))
			go func() {
				n, err := h.Attach(context.Background(), vmm, sandbox.Egress{})
				if err == nil {
					err = n.Close()
				}
				done <- err
			}()
		}
		for range vmms {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	// Each VMM has a pipe here.
	if got := openFiles(t); got > files+3*8*2 {
		t.Errorf("%d files are open, %d were before", got, files)
	}
}
