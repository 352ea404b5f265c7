package egress

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

// sockets are what the resolver and the relay listen on, inside of the namespace.
type sockets struct {
	dnsUDP net.PacketConn
	dnsTCP net.Listener
	// tcp are transparent: the local address of a connection that they accept is
	// the destination that the guest asked for.
	tcp []net.Listener
	// udp are transparent, and tell the destination of each datagram.
	udp []*net.UDPConn
	// reply opens a transparent socket that is bound to from and connected to to.
	reply func(from, to netip.AddrPort) (*net.UDPConn, error)
}

// opener lets the guest's packets through to an address that was resolved.
type opener interface {
	// open lets through what rules, all of them for names, allow at addr. It is
	// called before the guest learns the address.
	open(addr netip.Addr, rules []sandbox.EgressRule, ttl time.Duration) error
}

// userConfig is what a user is made of.
type userConfig struct {
	policy    *policy
	guest     Guest
	resolvers []netip.AddrPort // of the host, in the order in which they are asked
	ipv6      bool
	open      opener
	book      *book
	sockets   sockets
	log       *slog.Logger
	// hostLocal tells whether an address is the host's own; nil asks the kernel.
	hostLocal func(netip.Addr) bool
	// dial connects from the host's namespace; nil does that with a net.Dialer.
	dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// firstBytes is how long a connection may take to say which host it is for, and
	// udpIdle after how long without a datagram a flow is over; zero means the
	// constants of that name.
	firstBytes, udpIdle time.Duration
}

// forbidden tells whether addr is never reached, whatever the rules say.
func (c *userConfig) forbidden(p *policy, addr netip.Addr) bool {
	switch {
	case addr.Is4In6():
		return true // it would be compared with the wrong ranges
	case addr == c.guest.Addr || addr == c.guest.Addr6 || addr == c.guest.Gateway || addr == c.guest.Gateway6:
		return true // there is somebody else with it, out there
	}
	return p.ranges.forbids(addr) || c.hostLocal(addr)
}

// user is the part of a microVM's network that looks at what the guest sends: its
// resolver, and the relay that connects on its behalf.
type user struct {
	userConfig
	resolver *resolver
	relay    *relay
	end      context.CancelFunc
	running  sync.WaitGroup
}

// serve starts a resolver and a relay, which take over the sockets. The caller
// closes the user.
func serve(cfg userConfig) *user {
	if cfg.hostLocal == nil {
		cfg.hostLocal = hostLocal
	}
	if cfg.dial == nil {
		cfg.dial = func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, to.String())
		}
	}
	cfg.firstBytes = cmp.Or(cfg.firstBytes, firstBytes)
	cfg.udpIdle = cmp.Or(cfg.udpIdle, udpIdle)
	ctx, end := context.WithCancel(context.Background())
	u := &user{userConfig: cfg, end: end}
	u.resolver = newResolver(&u.userConfig)
	u.relay = newRelay(ctx, &u.userConfig, u.resolver)
	s := cfg.sockets
	u.running.Go(func() { u.resolver.serveUDP(ctx, s.dnsUDP) })
	u.running.Go(func() { u.resolver.serveTCP(ctx, s.dnsTCP) })
	for _, l := range s.tcp {
		u.running.Go(func() { u.relay.serveTCP(ctx, l) })
	}
	for _, c := range s.udp {
		u.running.Go(func() { u.relay.serveUDP(ctx, c) })
	}
	u.running.Go(u.relay.serveHTTP)
	return u
}

// set makes p the policy, and cuts what passes and is not allowed any more. When
// it returns, nothing is opened that p does not allow: so what the kernel lets
// through is set after it.
func (u *user) set(p *policy) {
	u.resolver.set(p)
	u.relay.set(p)
}

// close ends everything, and waits until it has ended.
func (u *user) close() {
	u.end()
	s := u.sockets
	_ = s.dnsUDP.Close()
	_ = s.dnsTCP.Close()
	for _, l := range s.tcp {
		_ = l.Close()
	}
	for _, c := range s.udp {
		_ = c.Close()
	}
	u.relay.close()
	// What takes in ends first, so that nothing is added to what is waited for.
	u.running.Wait()
	u.relay.running.Wait()
	u.resolver.running.Wait()
}

// hostLocal asks the kernel whether what is sent to addr stays on this host.
func hostLocal(addr netip.Addr) bool {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		// Nothing can be sent there either.
		return false
	}
	for _, route := range routes {
		if route.Type == unix.RTN_LOCAL {
			return true
		}
	}
	return false
}

// pause waits a little after an error of a socket that may well go on, such as
// too many open files. It tells whether to go on.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}
