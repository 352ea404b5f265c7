package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry/trace"
	"github.com/emberd/emberd/internal/x/fault"
)

// attempts is how often a boot is tried. A guest that stalls while booting is
// rare and has nothing to do with what was asked for, so it gets one more try.
const attempts = 2

// bootArgs is the guest's kernel command line, before what depends on the pack.
// What differs between the VMs of a pack is not in it: the agent is told that.
// The i8042 options save the probing of a keyboard that is not there; a guest
// that panics reboots, which ends its VMM. A restored guest may find that its
// clock went on while it stood still; RCU would take that for a stall, and write
// pages of it to the console.
const bootArgs = "console=ttyS0 reboot=k panic=1 pci=off quiet " +
	"i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on rcupdate.rcu_cpu_stall_suppress=1"

// BootArgs is the kernel command line of the VMs of a pack.
func BootArgs(p pack.Pack) string {
	return bootArgs + " " + p.BootArgs()
}

// ColdConfig is what every cold boot shares.
type ColdConfig struct {
	Launcher       firecracker.Launcher
	Kernel, Initrd string
	// Timeout bounds one create, both attempts together.
	Timeout time.Duration
	// Parallel is how many VMs boot at a time; more wait for their turn.
	Parallel int
	// Records may be nil; then no VM outlives the daemon.
	Records Records
	// Networks may be nil; then no VM has a network interface.
	Networks Networks

	Log    *slog.Logger
	Faults *fault.Set
}

// Cold boots VMs from their kernel.
type Cold struct {
	cfg     ColdConfig
	slots   chan struct{}
	retried atomic.Int64
}

// NewCold returns a Provisioner that boots VMs from their kernel.
func NewCold(cfg ColdConfig) *Cold {
	return &Cold{cfg: cfg, slots: make(chan struct{}, cfg.Parallel)}
}

// Retried is how many boots had to be tried again so far.
func (c *Cold) Retried() int64 { return c.retried.Load() }

// Provision boots a VM. Waiting for a turn to boot is bounded by ctx alone; the
// boot itself also by the configured timeout.
func (c *Cold) Provision(ctx context.Context, req Request) (*VM, error) {
	if req.BootPath != "" && req.BootPath != sandbox.ColdBoot {
		return nil, sandbox.NoBootPath(req.BootPath, "this emberd boots every microVM from its kernel")
	}
	if err := CheckEgress(c.cfg.Networks, req.Egress); err != nil {
		return nil, err
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	id := sandbox.NewVMID()
	if err := req.Begin(id); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		vm, err := c.boot(ctx, id, req)
		if err == nil {
			return vm, nil
		}
		if ctx.Err() != nil {
			return nil, errors.Join(context.Cause(ctx), err)
		}
		if errors.Is(err, sandbox.ErrEgress) {
			return nil, err
		}
		if attempt == attempts || !errors.Is(err, errStalled) {
			return nil, sandbox.ErrBoot.Because(err)
		}
		c.retried.Add(1)
		c.cfg.Log.Warn("guest did not come up, booting it again", "vm", id, "err", err)
	}
}

// errStalled is a guest that runs and never says hello.
var errStalled = errors.New("the guest did not say hello in time")

func (c *Cold) boot(ctx context.Context, id sandbox.VMID, req Request) (_ *VM, err error) {
	limit := c.cfg.Timeout / attempts
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w (%v)", errStalled, limit))
	defer cancel()
	ctx, span := trace.Start(ctx, "boot")
	defer func() { span.End(trace.Code(err)) }()
	nic := NewInterface(c.cfg.Networks, id, req.Egress)
	fc, err := firecracker.Boot(ctx, c.cfg.Launcher, firecracker.Config{
		ID:        id,
		Size:      req.Limits.Size,
		Kernel:    c.cfg.Kernel,
		Initrd:    c.cfg.Initrd,
		Rootfs:    req.Pack.RootfsPath,
		BootArgs:  BootArgs(req.Pack),
		Interface: nic.OfVM(),
	}, c.cfg.Faults)
	if err != nil {
		return nil, errors.Join(err, nic.Close())
	}
	host := Host{Records: c.cfg.Records, Log: c.cfg.Log, Faults: c.cfg.Faults}
	vm, err := host.Ready(ctx, fc, Identity{ID: id, Pack: req.Pack, Limits: req.Limits, BootPath: sandbox.ColdBoot, Interface: nic, Spare: req.Ahead})
	if err != nil {
		return nil, err
	}
	vm.warmUp(ctx, c.cfg.Log)
	return vm, nil
}
