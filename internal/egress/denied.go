package egress

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"

	"github.com/emberd/emberd/internal/sandbox"
)

// icmpProtocol is that of control messages, of both families.
const icmpProtocol sandbox.Protocol = "icmp"

// tally is how often something was refused. The kernel forgets what was not
// repeated for long, and then counts from the beginning.
type tally struct {
	total, last uint64
	when        time.Time
}

// denied returns what the rules have refused.
func (k *kernel) denied() ([]sandbox.EgressDenial, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	conn, err := k.talk()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.CloseLasting() }()
	now := time.Now()
	counts := map[string]tally{}
	var all []sandbox.EgressDenial
	for _, f := range k.rules.families {
		for _, name := range []string{deniedSet, limitedSet} {
			set := k.rules.set(name + f.suffix)
			elements, err := conn.GetSetElements(set)
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", set.Name, err)
			}
			for _, e := range elements {
				addr, proto, port, ok := target(e.Key)
				if !ok || e.Counter == nil {
					continue
				}
				at := set.Name + string(e.Key)
				t := k.counts[at].seen(e, now)
				counts[at] = t
				if t.total > 0 {
					all = append(all, k.denial(name, addr, proto, port, t))
				}
			}
		}
	}
	k.counts = counts
	return all, nil
}

func (t tally) seen(e nftables.SetElement, now time.Time) tally {
	count := e.Counter.Packets
	if count < t.last {
		t.last = 0
	}
	t.total += count - t.last
	t.last = count
	t.when = now.Add(e.Expires - deniedFor)
	return t
}

func (k *kernel) denial(set string, addr netip.Addr, proto sandbox.Protocol, port uint16, t tally) sandbox.EgressDenial {
	d := sandbox.EgressDenial{Addr: addr, Port: port, Protocol: proto, Reason: sandbox.DeniedNoRule, Count: int64(t.total), Last: t.when}
	switch {
	case set == limitedSet:
		d.Reason = sandbox.DeniedLimit
	case k.ranges.forbids(addr):
		d.Reason = sandbox.DeniedRange
	case port != 0 && (proto == sandbox.TCP || proto == sandbox.UDP):
		d.Rule = &sandbox.EgressRule{CIDR: netip.PrefixFrom(addr, addr.BitLen()), Ports: []uint16{port}, Protocol: proto}
	}
	return d
}
