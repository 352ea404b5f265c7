package egress

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// Config says what networks are like.
type Config struct {
	// Ranges are not public, and yet may be reached.
	Ranges Ranges
	// DNS are the servers that names are asked of, those of the host if there are
	// none.
	DNS []netip.AddrPort
	// IPv6 gives guests an address of that kind as well.
	IPv6 bool
	// Defaults are the limits of a policy that has none.
	Defaults sandbox.Egress

	Log    *slog.Logger
	Faults *fault.Set
}

// Host gives microVMs of this host network interfaces. Its methods may be called by
// any number of goroutines.
type Host struct{ cfg Config }

// New checks cfg, and makes nothing.
func New(cfg Config) (*Host, error) {
	if err := CheckLimits(cfg.Defaults); err != nil {
		return nil, err
	}
	return &Host{cfg}, nil
}

// MaxRangePorts bounds the ports of all rules for ranges together: the time that
// the kernel takes to change them grows with the square of it.
const MaxRangePorts = 4096

// Resolve is [Ranges.Resolve] with this host's ranges and defaults. It also refuses
// IPv6 where none passes, and more than [MaxRangePorts].
func (h *Host) Resolve(asked sandbox.Egress) (sandbox.Egress, error) {
	e, err := h.cfg.Ranges.Resolve(asked, h.cfg.Defaults)
	if err != nil {
		return sandbox.Egress{}, err
	}
	ports := 0
	for _, rule := range e.Allow {
		if !rule.CIDR.IsValid() {
			continue
		}
		if rule.CIDR.Addr().Is6() && !h.cfg.IPv6 {
			return sandbox.Egress{}, sandbox.Invalid("egress: %s is IPv6, of which nothing passes unless emberd's --egress-ipv6 is given", rule.CIDR)
		}
		ports += max(1, len(rule.Ports))
	}
	if ports > MaxRangePorts {
		return sandbox.Egress{}, sandbox.Invalid("egress: its rules for ranges have %d ports; they can have %d in all", ports, MaxRangePorts)
	}
	return e, nil
}

// resolvConf is what the host's own programs find the servers in.
const resolvConf = "/etc/resolv.conf"

// resolvers returns the servers that names are asked of.
func (h *Host) resolvers() ([]netip.AddrPort, error) {
	if len(h.cfg.DNS) > 0 {
		return h.cfg.DNS, nil
	}
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		// resolv.conf(5) says what that means.
		return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resolvConf, err)
	}
	port, err := strconv.ParseUint(conf.Port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resolvConf, err)
	}
	var servers []netip.AddrPort
	for _, server := range conf.Servers {
		addr, err := netip.ParseAddr(server)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", resolvConf, err)
		}
		servers = append(servers, netip.AddrPortFrom(addr, uint16(port)))
	}
	return servers, nil
}

// Network is the interface of one microVM. Its methods may be called by any number
// of goroutines.
type Network struct {
	id     sandbox.VMID
	log    *slog.Logger
	ranges Ranges
	kernel *kernel
	user   *user
	book   *book

	mu     sync.Mutex // serialises changes of the policy, and the end
	policy *policy
	closed bool
}

// Attach makes the interface of a VMM that has no VM yet, with the rules of a
// policy in force before it is there. The policy is one that [Host.Resolve] has
// returned. The caller knows that the VMM lives until Attach returns. On error
// nothing is left.
func (h *Host) Attach(ctx context.Context, vmm VMM, e sandbox.Egress) (*Network, error) {
	return h.start(ctx, vmm, e, attachKernel)
}

// Adopt takes over the interface that an earlier daemon made, and has a policy in
// force there. On error nothing passes, until it is tried again.
func (h *Host) Adopt(ctx context.Context, vmm VMM, e sandbox.Egress) (*Network, error) {
	return h.start(ctx, vmm, e, adoptKernel)
}

func (h *Host) start(ctx context.Context, vmm VMM, e sandbox.Egress,
	begin func(context.Context, kernelConfig, VMM, *policy) (*kernel, sockets, error),
) (*Network, error) {
	servers, err := h.resolvers()
	if err != nil {
		return nil, err
	}
	p := newPolicy(e, h.cfg.Ranges)
	k, s, err := begin(ctx, kernelConfig{h.cfg.IPv6, h.cfg.Log, h.cfg.Faults}, vmm, p)
	if err != nil {
		return nil, fmt.Errorf("network of %s: %w", vmm.ID, err)
	}
	n := &Network{id: vmm.ID, log: h.cfg.Log, ranges: h.cfg.Ranges, kernel: k, book: newBook(), policy: p}
	n.user = serve(userConfig{ //nolint:contextcheck // it goes on when the request for it has ended
		policy: p, guest: k.guest, resolvers: servers, ipv6: h.cfg.IPv6,
		open: k, book: n.book, sockets: s, log: h.cfg.Log.With("vm", vmm.ID),
	})
	return n, nil
}

// Guest is how the guest sees the interface.
func (n *Network) Guest() Guest { return n.kernel.guest }

// Set has another policy, one that [Host.Resolve] has returned, in force when it
// returns: what it does not allow is cut. After an error the old one is.
func (n *Network) Set(ctx context.Context, e sandbox.Egress) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return net.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p := newPolicy(e, n.ranges)
	// From here on nothing is resolved for the old policy, so nothing that the
	// kernel closes is opened again.
	n.user.set(p)
	if err := n.kernel.set(p); err != nil {
		n.user.set(n.policy)
		return fmt.Errorf("network of %s: %w", n.id, err)
	}
	n.policy = p
	return nil
}

// Denials is what was refused so far.
func (n *Network) Denials() []sandbox.EgressDenial {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.book.list()
	if n.closed {
		return all
	}
	refused, err := n.kernel.denied()
	if err != nil {
		n.log.Error("what the kernel refused is not known", "vm", n.id, "err", err)
		return all
	}
	return append(all, refused...)
}

// Stats is what went through an interface, and what did not.
type Stats struct {
	Bytes   uint64 // that passed, in both directions
	Refused uint64 // packets that the policy did not allow
	Forged  uint64 // packets that no honest guest sends
}

// Stats reads the kernel's counts.
func (n *Network) Stats() (Stats, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return Stats{}, net.ErrClosed
	}
	used, err := n.kernel.used()
	return Stats{used.Bytes, used.Refused, used.Forged}, err
}

// Close ends everything that goes on in the daemon for the interface, and with it
// all that passes. What is in the VMM's namespace ends with the VMM. It may be
// called again.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	n.user.close()
	return n.kernel.close()
}
