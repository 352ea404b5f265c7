// Package internet is the outside world of a test: a network namespace with its
// own names, addresses and servers, at the other end of a link.
//
// The one idea is that the link is this process. Two TUN interfaces, one here and
// one there, are joined by goroutines that pass packets on and note each of them
// ([Internet.Sent]), so that a test can say of a packet that it was never sent, and
// not only that nobody answered it. Names are what the test scripts ([Internet.Host],
// [Internet.Script]), every address of the ranges that lead there answers, and each
// server notes who was asked for ([Internet.Asked], [Internet.Visits]).
//
// Nothing leaves the host: the link's routes lead to addresses for documentation,
// and to single ones that are no public internet. It is for tests as root; there can
// be one at a time.
package internet

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The ends of the link: Here is the host's address on it.
var (
	Here  = netip.MustParseAddr("192.0.2.2")
	Here6 = netip.MustParseAddr("3fff::2")

	there  = netip.MustParseAddr("192.0.2.1")
	there6 = netip.MustParseAddr("3fff::1")
)

// Resolver is the address of the name server, and Resolvers all those where one
// answers.
var (
	Resolver  = netip.MustParseAddrPort("203.0.113.53:53")
	Resolvers = []netip.AddrPort{Resolver, netip.MustParseAddrPort("198.51.100.53:53")}
)

// link is the name of the interface, at both ends.
const link = "internet0"

// mtu lets a packet be as long as those that the kernel passes on between
// interfaces of its own.
const mtu = 65000

// public are the ranges that lead to the internet, and Special the single
// addresses that do though they are no part of it: servers answer there as
// anywhere, so that only a policy keeps anybody away.
var (
	public  = prefixes("203.0.113.0/24", "198.51.100.0/24", "2001:db8::/32")
	Special = addresses(
		"0.1.2.3", "10.66.0.1", "100.64.0.99", "100.100.100.200", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.254",
		"192.0.0.1", "192.88.99.1", "192.168.0.1", "192.168.255.254", "198.18.0.1", "198.19.255.254", "240.0.0.1", "255.255.255.254",
		"fd00:ec2::254", "fc00::1", "fec0::1", "64:ff9b::cb00:7107", "2002:cb00:7107::1", "2001:0:cb00:7107::1", "::1.2.3.4",
	)
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func addresses(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// routes are what leads to the internet.
func routes() []netip.Prefix {
	all := slices.Clone(public)
	for _, a := range Special {
		all = append(all, single(a))
	}
	return all
}

// Internet is one. Its methods may be called by any number of goroutines.
type Internet struct {
	// CA signs the certificates of all its servers.
	CA *Authority

	space   *namespace
	closers []func() error
	running sync.WaitGroup
	wire    wire

	mu     sync.Mutex
	names  map[string]Script
	times  map[string]int
	asked  []Question
	visits []Visit
	sites  map[string]http.Handler
	// talking are the connections that end with the internet.
	talking map[net.Conn]bool
}

// New makes the internet, and routes to it in the namespace of the caller. The
// caller closes it.
func New() (n *Internet, err error) {
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	n = &Internet{CA: ca, names: map[string]Script{}, times: map[string]int{}, sites: map[string]http.Handler{}, talking: map[net.Conn]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.space, err = newNamespace(); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.space.close)
	var far, near *os.File
	err = n.space.do(func() error {
		if far, err = makeLink(there, there6); err != nil {
			return err
		}
		n.closers = append(n.closers, far.Close)
		return errors.Join(own(), route(single(Here), single(Here6)))
	})
	if err != nil {
		return nil, fmt.Errorf("the internet's end of the link: %w", err)
	}
	if near, err = makeLink(Here, Here6); err != nil {
		return nil, fmt.Errorf("the host's end of the link: %w", err)
	}
	n.closers = append(n.closers, near.Close)
	n.running.Go(func() { n.wire.pass(far, near, true) })
	n.running.Go(func() { n.wire.pass(near, far, false) })
	if err := n.space.do(n.serve); err != nil {
		return nil, fmt.Errorf("the internet's servers: %w", err)
	}
	if err := route(append(routes(), single(there), single(there6))...); err != nil {
		return nil, err
	}
	return n, nil
}

// Close ends it, and everything of it is gone when it returns.
func (n *Internet) Close() error {
	var errs []error
	for _, c := range slices.Backward(n.closers) {
		errs = append(errs, c())
	}
	n.closers = nil
	n.mu.Lock()
	for conn := range n.talking {
		_ = conn.Close()
	}
	n.mu.Unlock()
	n.running.Wait()
	return errors.Join(errs...)
}

// In runs f on a thread that is in the internet: what it listens on and dials is
// there. f starts no goroutine that does.
func (n *Internet) In(f func() error) error { return n.space.do(f) }

// makeLink makes an interface in the calling thread's namespace, with an address
// of each family. It is there for as long as the file is open.
func makeLink(addr, addr6 netip.Addr) (f *os.File, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	ifr, err := unix.NewIfreq(link)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, fmt.Errorf("make interface %s: %w", link, err)
	}
	// An address that the kernel makes up is announced to everybody.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/addr_gen_mode", []byte("1"), 0); err != nil {
		return nil, err
	}
	l, err := netlink.LinkByName(link)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(netlink.LinkSetMTU(l, mtu), netlink.LinkSetUp(l)); err != nil {
		return nil, fmt.Errorf("set %s up: %w", link, err)
	}
	for _, a := range []netip.Addr{addr, addr6} {
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(single(a)), Flags: unix.IFA_F_NODAD}); err != nil {
			return nil, fmt.Errorf("add %s to %s: %w", a, link, err)
		}
	}
	return os.NewFile(uintptr(fd), link), nil
}

// route leads to some ranges by way of the link.
func route(ranges ...netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, to := range ranges {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(to), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route %s: %w", to, err)
		}
	}
	return nil
}

// own makes every address of the internet one of the namespace's own.
func own() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, r := range routes() {
		local := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(r), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}
		if err := netlink.RouteAdd(local); err != nil {
			return fmt.Errorf("have %s: %w", r, err)
		}
	}
	// Of IPv6 a datagram may else only be sent from an address of an interface.
	return os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0)
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// canonical is the form in which names are compared.
func canonical(name string) string { return strings.ToLower(dns.Fqdn(name)) }
