package daemon

import (
	"context"

	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// openNetworks returns what decides about the egress of sandboxes and what gives
// them network interfaces, both nil if no sandbox is to have one.
func (d *Daemon) openNetworks() (engine.Policies, provision.Networks, error) {
	cfg := d.cfg.Egress
	if !cfg.On {
		return nil, nil, nil
	}
	host, err := egress.New(egress.Config{
		Ranges: cfg.Ranges, DNS: cfg.DNS, IPv6: cfg.IPv6, Defaults: cfg.Limits, Log: d.log, Faults: d.cfg.Faults,
	})
	if err != nil {
		return nil, nil, err
	}
	if d.cfg.Networks != nil {
		return host, d.cfg.Networks, nil
	}
	return host, networks{host}, nil
}

// networks is the host's network interfaces as [provision.Networks].
type networks struct{ *egress.Host }

func (n networks) Attach(ctx context.Context, vmm egress.VMM, policy sandbox.Egress) (provision.Network, error) {
	network, err := n.Host.Attach(ctx, vmm, policy)
	if err != nil {
		return nil, err // not a nil of another type
	}
	return network, nil
}

func (n networks) Adopt(ctx context.Context, vmm egress.VMM, policy sandbox.Egress) (provision.Network, error) {
	network, err := n.Host.Adopt(ctx, vmm, policy)
	if err != nil {
		return nil, err
	}
	return network, nil
}
