package egress

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

const (
	tunDevice = "/dev/net/tun"
	mtu       = 1500
	// localTable says that everything the guest sends is for this host, so that it
	// comes to the rules and to the relay and goes nowhere else.
	localTable = 100
)

// makeTAP makes the interface in the namespace of the calling thread, for a VMM
// with that user id: it may open it and may not change it.
func makeTAP(uid int) error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return sandbox.EgressUnavailable("this host has no TUN, no " + tunDevice + " (sudo modprobe tun)").Because(err)
		}
		return fmt.Errorf("open %s: %w", tunDevice, err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(TAP)
	if err != nil {
		return err
	}
	// As Firecracker opens it. The flag for one owner at a time refuses a device
	// that is there already.
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("make %s: %w", TAP, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid); err != nil {
		return fmt.Errorf("give %s to user %d: %w", TAP, uid, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep %s: %w", TAP, err)
	}
	return nil
}

// holds returns an error unless the namespace of the calling thread has the
// interface, or has it not, and nothing else: any other namespace is not a VMM's.
func holds(tap bool) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range links {
		switch name := link.Attrs().Name; {
		case name == "lo":
		case name == TAP && tap && link.Type() == "tuntap":
			tap = false
		default:
			return fmt.Errorf("there is an interface %s in the VMM's network namespace, which should have none that emberd did not make", name)
		}
	}
	if tap {
		return fmt.Errorf("there is no %s in the VMM's network namespace", TAP)
	}
	return nil
}

// removeTAP undoes makeTAP and wire in the namespace of the calling thread.
func removeTAP() error {
	var errs []error
	if tap, err := netlink.LinkByName(TAP); err == nil {
		errs = append(errs, netlink.LinkDel(tap))
	} else if _, gone := errors.AsType[netlink.LinkNotFoundError](err); !gone {
		errs = append(errs, err)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			continue // the kernel has no IPv6
		}
		for _, rule := range rules {
			if rule.Table == localTable {
				errs = append(errs, netlink.RuleDel(&rule))
			}
		}
	}
	routes, err := netlink.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: localTable}, netlink.RT_FILTER_TABLE)
	errs = append(errs, err)
	for _, route := range routes {
		errs = append(errs, netlink.RouteDel(&route))
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		errs = append(errs, netlink.LinkSetDown(lo))
	}
	return errors.Join(errs...)
}

// wire gives the interface its addresses and has everything from it delivered
// here, in the namespace of the calling thread. It may be called again.
func wire(guest Guest, ipv6 bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	tap, err := netlink.LinkByName(TAP)
	if err != nil {
		return fmt.Errorf("find %s: %w", TAP, err)
	}
	if attrs := tap.Attrs(); attrs.HardwareAddr.String() != guest.GatewayMAC.String() {
		if err := netlink.LinkSetHardwareAddr(tap, guest.GatewayMAC); err != nil {
			return fmt.Errorf("set address of %s: %w", TAP, err)
		}
	}
	for _, step := range []func(netlink.Link) error{
		netlink.LinkSetARPOff, // who is at the other end is known
		func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu) },
		netlink.LinkSetUp,
	} {
		if err := step(tap); err != nil {
			return fmt.Errorf("set up %s: %w", TAP, err)
		}
	}
	if err := route(lo, tap, unix.AF_INET, guest.Gateway, guest.Addr, guest.MAC); err != nil || !ipv6 {
		return err
	}
	return route(lo, tap, unix.AF_INET6, guest.Gateway6, guest.Addr6, guest.MAC)
}

// route does for one family of addresses what wire does.
func route(lo, tap netlink.Link, family int, own, peer netip.Addr, mac net.HardwareAddr) error {
	host := func(a netip.Addr) *net.IPNet {
		return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
	}
	addr := &netlink.Addr{IPNet: host(own)}
	if family == unix.AF_INET6 {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(tap, addr); err != nil {
		return fmt.Errorf("give %s the address %s: %w", TAP, own, err)
	}
	neigh := &netlink.Neigh{LinkIndex: tap.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: peer.AsSlice(), HardwareAddr: mac}
	if err := netlink.NeighSet(neigh); err != nil {
		return fmt.Errorf("set neighbour %s: %w", peer, err)
	}
	everything := &net.IPNet{IP: make(net.IP, own.BitLen()/8), Mask: net.CIDRMask(0, own.BitLen())}
	for _, r := range []*netlink.Route{
		{Family: family, LinkIndex: tap.Attrs().Index, Dst: host(peer), Scope: netlink.SCOPE_LINK},
		{Family: family, LinkIndex: lo.Attrs().Index, Dst: everything, Scope: netlink.SCOPE_HOST, Type: unix.RTN_LOCAL, Table: localTable},
	} {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("set route to %s: %w", r.Dst, err)
		}
	}
	rules, err := netlink.RuleList(family)
	if err != nil {
		return fmt.Errorf("list routing rules: %w", err)
	}
	for _, rule := range rules {
		if rule.Table == localTable && rule.IifName == TAP {
			return nil
		}
	}
	rule := netlink.NewRule()
	rule.Family, rule.IifName, rule.Table = family, TAP, localTable
	if err := netlink.RuleAdd(rule); err != nil {
		return fmt.Errorf("add routing rule: %w", err)
	}
	return nil
}
