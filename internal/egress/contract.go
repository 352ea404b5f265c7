package egress

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

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
}

// user is the part of a microVM's network that looks at what the guest sends.
type user struct{ userConfig }

func serve(cfg userConfig) *user { return &user{cfg} }

func (u *user) set(p *policy) { u.policy = p }

func (u *user) close() {
	_ = u.sockets.dnsUDP.Close()
	_ = u.sockets.dnsTCP.Close()
	for _, l := range u.sockets.tcp {
		_ = l.Close()
	}
	for _, c := range u.sockets.udp {
		_ = c.Close()
	}
}

// book keeps what was refused.
type book struct {
	mu      sync.Mutex
	denials []sandbox.EgressDenial
}

func newBook() *book { return &book{} }

func (b *book) deny(d sandbox.EgressDenial) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.denials = append(b.denials, d)
}

func (b *book) list() []sandbox.EgressDenial {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]sandbox.EgressDenial(nil), b.denials...)
}
