package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens the sockets in the namespace. On error none is left open.
func (k *kernel) listen(ctx context.Context) (s sockets, err error) {
	err = k.ns.do(func() error {
		dns := netip.AddrPortFrom(k.guest.Gateway, 53).String()
		if s.dnsUDP, err = plainListen.ListenPacket(ctx, "udp4", dns); err != nil {
			return err
		}
		if s.dnsTCP, err = plainListen.Listen(ctx, "tcp4", dns); err != nil {
			return err
		}
		for _, f := range k.rules.families {
			at := netip.AddrPortFrom(f.relay, relayPort).String()
			l, err := transparentListen.Listen(ctx, "tcp", at)
			if err != nil {
				return err
			}
			s.tcp = append(s.tcp, l)
			c, err := transparentListen.ListenPacket(ctx, "udp", at)
			if err != nil {
				return err
			}
			s.udp = append(s.udp, c.(*net.UDPConn))
		}
		return nil
	})
	if err != nil {
		return sockets{}, errors.Join(fmt.Errorf("listen in the namespace: %w", err), s.close())
	}
	s.reply = k.reply
	return s, nil
}

var (
	plainListen       net.ListenConfig
	transparentListen = net.ListenConfig{Control: transparent}
)

func init() {
	// The kernel's transparent sockets are plain TCP.
	plainListen.SetMultipathTCP(false)
	transparentListen.SetMultipathTCP(false)
}

// transparent has a socket take what is for other addresses than this host's, speak
// from them, and tell them.
func transparent(network, _ string, conn syscall.RawConn) error {
	level, option, tell := unix.SOL_IP, unix.IP_TRANSPARENT, unix.IP_RECVORIGDSTADDR
	if network[len(network)-1] == '6' {
		level, option, tell = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_RECVORIGDSTADDR
	}
	var err error
	return errors.Join(conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), level, option, 1)
		if err == nil && network[:3] == "udp" {
			// Flows from several ports of the guest's to one destination each have a
			// socket that is bound to it.
			err = errors.Join(unix.SetsockoptInt(int(fd), level, tell, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		}
	}), err)
}

// reply opens a socket in the namespace that speaks to the guest as somebody else.
// What the guest sends back to it arrives there.
func (k *kernel) reply(from, to netip.AddrPort) (conn *net.UDPConn, err error) {
	err = k.ns.do(func() error {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from), Control: transparent}
		c, err := d.DialContext(context.Background(), "udp", to.String())
		if err != nil {
			return err
		}
		conn = c.(*net.UDPConn)
		return nil
	})
	return conn, err
}

// close closes what is open. It may be called again.
func (s sockets) close() error {
	var errs []error
	if s.dnsUDP != nil {
		errs = append(errs, s.dnsUDP.Close())
	}
	if s.dnsTCP != nil {
		errs = append(errs, s.dnsTCP.Close())
	}
	for _, l := range s.tcp {
		errs = append(errs, l.Close())
	}
	for _, c := range s.udp {
		errs = append(errs, c.Close())
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	return nil
}
