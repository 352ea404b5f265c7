package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
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
