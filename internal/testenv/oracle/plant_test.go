package oracle

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// apart plants in a network namespace of this thread's own, which is looked at
// from then on and has less in it than the host's.
func apart(plantThere func(*testing.T)) plant {
	return func(t *testing.T, _ *scene) {
		t.Helper()
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		must(t, err)
		must(t, unix.Unshare(unix.CLONE_NEWNET))
		t.Cleanup(func() {
			// A thread that cannot go back stays locked, and ends with the test.
			must(t, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
			must(t, home.Close())
			runtime.UnlockOSThread()
		})
		plantThere(t)
	}
}

// plantTap makes a link of the kind that a VM is connected with.
func plantTap(t *testing.T) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no TAP devices here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	tap, err := unix.NewIfreq("planted")
	must(t, err)
	tap.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, tap))
}

// plantRoutes makes a route to an address that nobody has, and one to all others.
func plantRoutes(t *testing.T) {
	t.Helper()
	const add = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE
	blackhole := func(bits byte, to ...byte) []byte {
		body := []byte{unix.AF_INET, bits, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_BLACKHOLE, 0, 0, 0, 0}
		return message(unix.RTM_NEWROUTE, add, append(body, to...))
	}
	tell(t, unix.NETLINK_ROUTE, blackhole(24, attribute(unix.RTA_DST, []byte{192, 0, 2, 0})...))
	tell(t, unix.NETLINK_ROUTE, blackhole(0))
}

// plantRuleset makes a table with a chain, a rule that does nothing, and a set.
func plantRuleset(t *testing.T) {
	t.Helper()
	if _, err := dump(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, make([]byte, nfgenmsgSize)); err != nil {
		t.Skipf("no nftables here: %v", err)
	}
	number := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	batch := func(kind uint16) []byte {
		return message(kind, unix.NLM_F_REQUEST, []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES})
	}
	part := func(kind uint16, attributes ...[]byte) []byte {
		body := slices.Concat([]byte{unix.AF_INET, 0, 0, 0}, slices.Concat(attributes...))
		return message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE, body)
	}
	table, chain, set := []byte("planted\x00"), []byte("chain\x00"), []byte("set\x00")
	tell(t, unix.NETLINK_NETFILTER, slices.Concat(
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		part(unix.NFT_MSG_NEWTABLE, attribute(unix.NFTA_TABLE_NAME, table)),
		part(unix.NFT_MSG_NEWCHAIN, attribute(unix.NFTA_CHAIN_TABLE, table), attribute(unix.NFTA_CHAIN_NAME, chain)),
		part(unix.NFT_MSG_NEWRULE, attribute(unix.NFTA_RULE_TABLE, table), attribute(unix.NFTA_RULE_CHAIN, chain)),
		part(unix.NFT_MSG_NEWSET, attribute(unix.NFTA_SET_TABLE, table), attribute(unix.NFTA_SET_NAME, set),
			attribute(unix.NFTA_SET_KEY_LEN, number(4)), attribute(unix.NFTA_SET_ID, number(1))),
		batch(unix.NFNL_MSG_BATCH_END)))
}

// attribute is one attribute of a message, filled up to a multiple of four.
func attribute(kind uint16, value []byte) []byte {
	a := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	a = append(binary.NativeEndian.AppendUint16(a, kind), value...)
	return append(a, make([]byte, -len(a)&3)...)
}

// tell sends the kernel requests and waits until it has done the first of them,
// which in a batch is all.
func tell(t *testing.T, protocol int, requests []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	must(t, send(fd, requests))
	answers, err := receive(fd)
	must(t, err)
	for _, a := range answers {
		must(t, answerError(a))
	}
}

// plantLoop gives a loop device a file.
func plantLoop(t *testing.T, s *scene) {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	defer func() { _ = control.Close() }()
	path := filepath.Join(s.kept, "file")
	must(t, os.Truncate(path, 1<<20))
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer func() { _ = file.Close() }()
	// Another process can take the free one first.
	for range 10 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		must(t, err)
		if err = unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(file.Fd())); err == nil {
			t.Cleanup(func() {
				must(t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0))
				_ = loop.Close()
			})
			return
		}
		_ = loop.Close()
	}
	t.Fatal("no loop device is to be had")
}
