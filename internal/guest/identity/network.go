package identity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// nic is what the kernel calls the VM's one network interface.
const nic = "eth0"

// resolvConf is where programs look for who resolves names.
const resolvConf = "etc/resolv.conf"

// checkNetwork returns an error unless n is none, or one interface of one address
// of each kind with one gateway.
func checkNetwork(n *agentv1.Network) error {
	if n == nil {
		return nil
	}
	for name, mac := range map[string][]byte{"MAC address": n.GetMac(), "gateway's MAC address": n.GetGatewayMac()} {
		// The lowest bit of the first byte stands for many stations.
		if len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
			return fmt.Errorf("the %s %x", name, mac)
		}
	}
	for name, address := range map[string][]byte{"address": n.GetAddress(), "gateway": n.GetGateway()} {
		if len(address) != 4 || !oneHost(address) {
			return fmt.Errorf("the %s %x", name, address)
		}
	}
	if bytes.Equal(n.GetAddress(), n.GetGateway()) {
		return fmt.Errorf("the gateway's address %x", n.GetAddress())
	}
	if len(n.GetAddress6()) == 0 && len(n.GetGateway6()) == 0 {
		return nil
	}
	for name, address := range map[string][]byte{"IPv6 address": n.GetAddress6(), "IPv6 gateway": n.GetGateway6()} {
		if len(address) != 16 || !oneHost(address) {
			return fmt.Errorf("the %s %x", name, address)
		}
	}
	if bytes.Equal(n.GetAddress6(), n.GetGateway6()) {
		return fmt.Errorf("the gateway's IPv6 address %x", n.GetAddress6())
	}
	return nil
}

// oneHost says whether an address is one host's, on any network.
func oneHost(address []byte) bool {
	ip, ok := netip.AddrFromSlice(address)
	return ok && (ip.IsGlobalUnicast() && !ip.Is4In6())
}

// configureNetwork brings the interface up with the VM's addresses. There are no
// neighbours to be found and no routers to be heard of: the gateway is told, and
// nothing else is asked for on the link. Without a network the interface, if there
// is one, is down.
func (s *system) configureNetwork(id *agentv1.Arm) (err error) {
	n := id.GetNetwork()
	index, err := s.interfaceIndex(nic)
	if n == nil && errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", nic, err)
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	l := link{conn, index}
	// With it go its routes and neighbours.
	if err := l.set(0, unix.IFF_UP, nil); err != nil || n == nil {
		return err
	}
	if err := errors.Join(l.clear(), s.restrictIPv6(n)); err != nil {
		return err
	}
	if err := l.set(unix.IFF_NOARP, unix.IFF_NOARP, n.GetMac()); err != nil {
		return err
	}
	if err := l.set(unix.IFF_UP, unix.IFF_UP, nil); err != nil {
		return err
	}
	for _, family := range []struct {
		name             uint8
		address, gateway []byte
	}{
		{unix.AF_INET, n.GetAddress(), n.GetGateway()},
		{unix.AF_INET6, n.GetAddress6(), n.GetGateway6()},
	} {
		if len(family.address) == 0 {
			continue
		}
		if err := l.connect(family.name, family.address, family.gateway, n.GetGatewayMac()); err != nil {
			return err
		}
	}
	return s.nameResolver(n.GetGateway())
}

// nameResolver tells programs who resolves names. What was there may be a link to
// what there is not.
func (s *system) nameResolver(gateway []byte) error {
	if err := os.Remove(filepath.Join(s.root, resolvConf)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.write(resolvConf, fmt.Sprintf("nameserver %v\n", net.IP(gateway)))
}

// restrictIPv6 has the interface make up no address, listen to no router, and have
// no IPv6 at all if it is not to have any. All addresses that it has go.
func (s *system) restrictIPv6(n *agentv1.Network) error {
	settings := []struct{ name, value string }{
		{"disable_ipv6", "1"}, {"accept_ra", "0"}, {"autoconf", "0"}, {"addr_gen_mode", "1"},
	}
	if len(n.GetAddress6()) > 0 {
		settings = append(settings, struct{ name, value string }{"disable_ipv6", "0"})
	}
	dir := filepath.Join(s.root, "proc/sys/net/ipv6/conf", nic)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && len(n.GetAddress6()) == 0 {
		return nil // a kernel without it
	}
	for _, set := range settings {
		if err := os.WriteFile(filepath.Join(dir, set.name), []byte(set.value), 0); err != nil {
			return err
		}
	}
	return nil
}

// link is a network interface, as the kernel is spoken to of it.
type link struct {
	conn  *netlink.Conn
	index int32
}

// interfaceIndex is the kernel's number of an interface. The error is
// [unix.ENODEV] if there is none of that name, which is looked for in a file first:
// asked for one that is not there, the kernel starts a program that could load its
// driver, and waits for it.
func (s *system) interfaceIndex(name string) (int32, error) {
	all := filepath.Join(s.root, "proc/sys/net/ipv4/conf")
	if _, err := os.Stat(filepath.Join(all, name)); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(all); err != nil {
			return 0, err
		}
		return 0, unix.ENODEV
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	return int32(req.Uint32()), err
}

// set changes flags of the interface, those in mask, and its MAC address unless
// that is nil.
func (l link) set(flags, mask uint32, mac []byte) error {
	err := l.ask(unix.RTM_NEWLINK, 0, unix.IfInfomsg{Index: l.index, Flags: flags, Change: mask}, func(a *netlink.AttributeEncoder) {
		if mac != nil {
			a.Bytes(unix.IFLA_ADDRESS, mac)
		}
	})
	if err != nil {
		return fmt.Errorf("set %s to %#x of %#x: %w", nic, flags, mask, err)
	}
	return nil
}

// clear removes the interface's IPv4 addresses, which stay when it goes down.
func (l link) clear() error {
	addrs, err := (&net.Interface{Index: int(l.index)}).Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		had, ok := a.(*net.IPNet)
		if !ok || had.IP.To4() == nil {
			continue
		}
		bits, _ := had.Mask.Size()
		header := unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: uint8(bits), Index: uint32(l.index)}
		err := l.ask(unix.RTM_DELADDR, 0, header, func(a *netlink.AttributeEncoder) { a.Bytes(unix.IFA_LOCAL, had.IP.To4()) })
		if err != nil {
			return fmt.Errorf("remove address %v: %w", had, err)
		}
	}
	return nil
}

// connect gives the interface, which is up, an address, and has everything but that
// go to the gateway.
func (l link) connect(family uint8, address, gateway, gatewayMAC []byte) error {
	const anew = netlink.Create | netlink.Replace
	bits := uint8(8 * len(address))
	toGateway := unix.RtMsg{
		Family: family, Dst_len: bits, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC,
		Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_UNICAST,
	}
	beyond := toGateway
	beyond.Dst_len, beyond.Scope = 0, unix.RT_SCOPE_UNIVERSE
	for _, step := range []struct {
		name   string
		kind   netlink.HeaderType
		header any
		attrs  func(*netlink.AttributeEncoder)
	}{
		{
			"address", unix.RTM_NEWADDR,
			// Nobody else can have it, so nobody is asked.
			unix.IfAddrmsg{Family: family, Prefixlen: bits, Flags: unix.IFA_F_NODAD, Index: uint32(l.index)},
			func(a *netlink.AttributeEncoder) {
				a.Bytes(unix.IFA_LOCAL, address)
				a.Bytes(unix.IFA_ADDRESS, address)
			},
		},
		{
			"neighbour", unix.RTM_NEWNEIGH,
			unix.NdMsg{Family: family, Ifindex: l.index, State: unix.NUD_PERMANENT},
			func(a *netlink.AttributeEncoder) {
				a.Bytes(unix.NDA_DST, gateway)
				a.Bytes(unix.NDA_LLADDR, gatewayMAC)
			},
		},
		{
			"route to the gateway", unix.RTM_NEWROUTE, toGateway,
			func(a *netlink.AttributeEncoder) {
				a.Bytes(unix.RTA_DST, gateway)
				a.Int32(unix.RTA_OIF, l.index)
			},
		},
		{
			"default route", unix.RTM_NEWROUTE, beyond,
			func(a *netlink.AttributeEncoder) {
				a.Bytes(unix.RTA_GATEWAY, gateway)
				a.Int32(unix.RTA_OIF, l.index)
			},
		},
	} {
		if err := l.ask(step.kind, anew, step.header, step.attrs); err != nil {
			return fmt.Errorf("%s of %v: %w", step.name, net.IP(address), err)
		}
	}
	return nil
}

// ask has the kernel carry out one request and returns what it says to it.
func (l link) ask(kind netlink.HeaderType, flags netlink.HeaderFlags, header any, attrs func(*netlink.AttributeEncoder)) error {
	data, err := binary.Append(nil, binary.NativeEndian, header)
	if err != nil {
		return err
	}
	encoder := netlink.NewAttributeEncoder()
	attrs(encoder)
	encoded, err := encoder.Encode()
	if err != nil {
		return err
	}
	_, err = l.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(data, encoded...),
	})
	return err
}
