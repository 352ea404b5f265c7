package real

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/jail"
	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/testenv"
)

// taps gives VMMs a TAP in their namespace, with an address for the host's end and
// no rules at all: what is tested here is the guest's.
type taps struct{}

func (taps) Attach(_ context.Context, vmm egress.VMM, _ sandbox.Egress) (provision.Network, error) {
	t := tap{vmm}
	return t, t.within(func() error { return t.make() })
}

func (taps) Adopt(_ context.Context, vmm egress.VMM, _ sandbox.Egress) (provision.Network, error) {
	t := tap{vmm}
	return t, t.within(func() error {
		_, err := netlink.LinkByName(egress.TAP)
		return err
	})
}

// tap is the TAP of one VMM.
type tap struct{ vmm egress.VMM }

func (t tap) Guest() egress.Guest {
	h := fnv.New32a()
	_, _ = h.Write([]byte(t.vmm.ID))
	sum := h.Sum(nil)
	return egress.Guest{
		MAC: net.HardwareAddr{2, 0, sum[0], sum[1], sum[2], sum[3]}, GatewayMAC: net.HardwareAddr{2, 0x65, 0x6d, 0, 0, 1},
		Addr: netip.AddrFrom4([4]byte{100, 65, sum[2], sum[3]}), Gateway: netip.AddrFrom4([4]byte{100, 64, 0, 1}),
		Addr6:    netip.MustParseAddr(fmt.Sprintf("fd00:656d::%x:%x", sum[:2], sum[2:])),
		Gateway6: netip.MustParseAddr("fd00:656d::1"),
	}
}

func (tap) Set(context.Context, sandbox.Egress) error { return nil }
func (tap) Denials() []sandbox.EgressDenial           { return nil }
func (tap) Close() error                              { return nil }

// within calls f on a thread that is in the VMM's network namespace for so long. It
// goes back: a thread that is given up ends, but the first of the process cannot,
// and what it is in would be the process's.
func (t tap) within(f func() error) (err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", t.vmm.PID))
	if err != nil {
		return err
	}
	defer there.Close()
	runtime.LockOSThread()
	defer func() {
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, back)
			return // the thread is nobody else's any more
		}
		runtime.UnlockOSThread()
	}()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	return f()
}

// make makes the device, for the VMM's user.
func (t tap) make() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(egress.TAP)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := errors.Join(
		unix.IoctlIfreq(fd, unix.TUNSETIFF, req),
		unix.IoctlSetInt(fd, unix.TUNSETOWNER, t.vmm.UID),
		unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1),
	); err != nil {
		return err
	}
	link, err := netlink.LinkByName(egress.TAP)
	if err != nil {
		return err
	}
	guest := t.Guest()
	errs := []error{netlink.LinkSetHardwareAddr(link, guest.GatewayMAC), netlink.LinkSetUp(link)}
	for gateway, addr := range map[netip.Addr]netip.Addr{guest.Gateway: guest.Addr, guest.Gateway6: guest.Addr6} {
		only := func(a netip.Addr) *net.IPNet {
			return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		}
		errs = append(errs,
			netlink.AddrAdd(link, &netlink.Addr{IPNet: only(gateway), Flags: unix.IFA_F_NODAD}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: only(addr)}),
			netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: guest.MAC}),
		)
	}
	return errors.Join(errs...)
}

// answer has the namespace's end of the link say who called, once for each address.
func (t tap) answer(tb testing.TB) {
	tb.Helper()
	for _, gateway := range []netip.Addr{t.Guest().Gateway, t.Guest().Gateway6} {
		var l net.Listener
		err := t.within(func() (err error) {
			l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", netip.AddrPortFrom(gateway, 7).String())
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintln(conn, conn.RemoteAddr().(*net.TCPAddr).IP) //nolint:forcetypeassert // it is one
				_ = conn.Close()
			}
		}()
	}
}

// launcher is the jail as the daemon has it.
type launcher struct{ *jail.Jailer }

func (l launcher) Launch(ctx context.Context, spec firecracker.LaunchSpec) (firecracker.Process, error) {
	return l.Start(ctx, jail.Spec(spec))
}

func (l launcher) Adopt(id sandbox.VMID, handle []byte) (firecracker.Process, error) {
	return l.Jailer.Adopt(id, handle)
}

// wired is what makes VMs with interfaces.
type wired struct {
	*template.Templates
	pack    pack.Pack
	limits  sandbox.Limits
	records *store.Store
	adopter provision.Adopter
}

func newWired(t *testing.T) *wired {
	t.Helper()
	testenv.Real(t)
	before := takeState(t)
	t.Cleanup(func() { checkState(t, before) })
	data := linkData(t)
	initrd := data.GuestInitramfs()
	if err := kernel.BuildInitramfs(initrd, installedInit(t), data.GuestModules(), kernel.GuestModules()); err != nil {
		t.Fatal(err)
	}
	packs, err := pack.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	w := &wired{}
	if w.pack, err = packs.Get("python"); err != nil {
		t.Fatal(err)
	}
	if w.limits, err = sandbox.DefaultPolicy().Resolve(sandbox.Limits{}); err != nil {
		t.Fatal(err)
	}
	text := &testenv.Log{}
	log := slog.New(slog.NewTextHandler(text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", text)
		}
	})
	j, err := jail.Open(jail.Config{
		Firecracker: data.Firecracker(), Jailer: data.Jailer(), Dir: data.Jails(),
		Users: jail.DefaultUsers, UserLocks: paths.UserLocks, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	if w.records, err = store.Open(paths.Run(t.TempDir())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.records.Close() })
	release, err := firecracker.CheckVersions(t.Context(), data.Firecracker(), data.Jailer())
	if err != nil {
		t.Fatal(err)
	}
	host, err := template.ThisHost(t.Context(), data.Firecracker(), release)
	if err != nil {
		t.Fatal(err)
	}
	w.adopter = provision.Adopter{Host: provision.Host{Records: w.records, Log: log}, VMMs: launcher{j}, Networks: taps{}}
	w.Templates, err = template.Open(t.Context(), template.Config{
		Cold: provision.NewCold(provision.ColdConfig{
			Launcher: launcher{j}, Kernel: data.Vmlinux(), Initrd: initrd, Timeout: 2 * time.Minute, Parallel: 1,
			Records: w.records, Networks: taps{}, Log: log,
		}),
		Launcher: launcher{j}, Packs: packs, Dir: data.Templates(), Kernel: data.Vmlinux(), Initrd: initrd, Host: host,
		Shells: 1, BuildTimeout: 5 * time.Minute, RestoreTimeout: time.Minute, Parallel: 1,
		Records: w.records, Networks: taps{}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// get makes a VM, which ends with the test.
func (w *wired) get(t *testing.T, path sandbox.BootPath, policy *sandbox.Egress) *provision.VM {
	t.Helper()
	began := time.Now()
	vm, err := w.Provision(t.Context(), provision.Request{
		Pack: w.pack, Limits: w.limits, BootPath: path, Egress: policy, Begin: func(sandbox.VMID) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, with egress: %v, took %v", path, policy != nil, time.Since(began))
	return vm
}

func run(t *testing.T, vm *provision.VM, code string) string {
	t.Helper()
	var out strings.Builder
	exit, err := vm.Agent.Exec(t.Context(), agent.Command{Code: code, Timeout: 5 * time.Minute}, agent.Stdio{Stdout: &out, Stderr: &out})
	if err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v: %s", exit, err, out.String())
	}
	return out.String()
}

// describe prints all that a guest has of a network, and calls the gateway on both
// addresses.
const describe = `
import glob, socket
def read(path):
    return open(path).read().strip()
print("devices", *sorted(read(d) for d in glob.glob("/sys/bus/virtio/devices/*/device")))
print("links", *sorted(d.split("/")[-1] for d in glob.glob("/sys/class/net/*")))
print("mac", read("/sys/class/net/eth0/address"), "flags", read("/sys/class/net/eth0/flags"))
print("resolver", read("/etc/resolv.conf"))
print("inet6", *[l.split()[0] for l in open("/proc/net/if_inet6") if l.split()[-1] == "eth0"])
print("arp", *[" ".join(l.split()) for l in list(open("/proc/net/arp"))[1:]])
print("routes", *sorted("/".join(l.split()[:3]) for l in list(open("/proc/net/route"))[1:]))
for to in "100.64.0.1", "fd00:656d::1":
    with socket.create_connection((to, 7), 60) as s:
        print("called as", s.makefile().read().strip())
`

// wantNetwork is what [describe] prints in the VM.
func wantNetwork(vm *provision.VM) string {
	g := vm.Network().Guest()
	hex := fmt.Sprintf("%x", g.Addr6.As16())
	return fmt.Sprintf("devices 0x0001 0x0002 0x0004 0x0013\nlinks eth0 lo\nmac %s flags 0x1083\nresolver nameserver 100.64.0.1\n"+
		"inet6 %s\narp 100.64.0.1 0x1 0x6 02:65:6d:00:00:01 * eth0\n"+
		"routes eth0/00000000/01004064 eth0/01004064/00000000\ncalled as %s\ncalled as %s\n", g.MAC, hex, g.Addr, g.Addr6)
}

// lull is long enough for a VMM to be launched, so that a restore finds one.
const lull = 3 * time.Second

// A VM that is booted or restored with an interface reaches what is at its other
// end, under an address that no other VM has; and so it goes on to when the next
// daemon takes it over. Others have no interface.
func TestNetworkInterface(t *testing.T) {
	w := newWired(t)
	kill := func(vm *provision.VM) {
		t.Helper()
		if err := vm.Kill(context.Background()); err != nil {
			t.Error(err)
		}
	}
	check := func(what string, vm *provision.VM) (got string) {
		t.Helper()
		if got = run(t, vm, describe); got != wantNetwork(vm) {
			t.Errorf("%s has\n%swant\n%s", what, got, wantNetwork(vm))
		} else {
			t.Logf("%s has\n%s", what, got)
		}
		return got
	}
	policy := &sandbox.Egress{}
	booted := w.get(t, sandbox.ColdBoot, policy)
	booted.Network().(tap).answer(t) //nolint:forcetypeassert // it is one
	check("one that was booted", booted)
	kill(booted)

	for _, network := range []bool{true, false} {
		began := time.Now()
		info, err := w.Build(t.Context(), template.Kind{Pack: w.pack, Size: w.limits.Size, Network: network})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("built in %v: %+v", time.Since(began), info)
	}
	first, second := w.get(t, sandbox.Restored, policy), w.get(t, sandbox.Restored, policy)
	seen := map[string]bool{}
	for _, vm := range []*provision.VM{first, second} {
		vm.Network().(tap).answer(t) //nolint:forcetypeassert // it is one
		seen[check("one that was restored", vm)] = true
	}
	if len(seen) != 2 {
		t.Errorf("both have the same: %v", seen)
	}
	kill(second)
	first.Leave()
	recs, err := w.records.LoadVMs()
	if err != nil || len(recs) != 1 || !recs[0].Network {
		t.Fatalf("records: %+v, %v", recs, err)
	}
	adopted, err := w.adopter.Adopt(t.Context(), recs[0], policy)
	if err != nil {
		t.Fatal(err)
	}
	check("one that was taken over", adopted)
	vmm := adopted.Jail().PID
	kill(adopted)
	// Who takes it over is its parent here, and would not be with another daemon.
	if _, err := unix.Wait4(vmm, nil, 0, nil); err != nil {
		t.Error(err)
	}

	for range 3 {
		time.Sleep(lull)
		kill(w.get(t, sandbox.Restored, policy))
		time.Sleep(lull)
		none := w.get(t, sandbox.Restored, nil)
		if got := run(t, none, `import os; print(os.listdir("/sys/class/net"))`); got != "['lo']\n" {
			t.Errorf("one without an interface has %s", got)
		}
		kill(none)
	}
}
