package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/vsock"
	"github.com/emberd/emberd/internal/x/fault"
)

// FaultHello is the fault point of waiting for the agent.
const FaultHello = "provision.hello"

// FaultPoints are the steps of [Cold.Provision] itself that a test can break.
var FaultPoints = []string{FaultHello}

// agentPort is the vsock port the guest's agent listens on.
const agentPort = 1024

// dialInterval is how often the guest is asked whether its agent is up. One try
// costs a few system calls on the host and an interrupt in the guest.
const dialInterval = 10 * time.Millisecond

// attempts is how often a boot is tried. A guest that stalls while booting is
// rare and has nothing to do with what was asked for, so it gets one more try.
const attempts = 2

// bootArgs is the guest's kernel command line, before what depends on the pack.
// The i8042 options save the probing of a keyboard that is not there; a guest
// that panics reboots, which ends its VMM.
const bootArgs = "console=ttyS0 reboot=k panic=1 pci=off quiet " +
	"i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on"

// ColdConfig is what every cold boot shares.
type ColdConfig struct {
	Launcher       firecracker.Launcher
	Kernel, Initrd string
	// Timeout bounds one create, both attempts together.
	Timeout time.Duration
	// Parallel is how many VMs boot at a time; more wait for their turn.
	Parallel int

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
		if attempt == attempts || !errors.Is(err, errStalled) {
			return nil, sandbox.ErrBoot.Because(err)
		}
		c.retried.Add(1)
		c.cfg.Log.Warn("guest did not come up, booting it again", "vm", id, "err", err)
	}
}

// errEnded is a VMM that is gone before its guest was up.
var errEnded = errors.New("the VMM ended before the guest was up")

// errStalled is a guest that runs and never says hello.
var errStalled = errors.New("the guest did not say hello in time")

func (c *Cold) boot(ctx context.Context, id sandbox.VMID, req Request) (*VM, error) {
	limit := c.cfg.Timeout / attempts
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w (%v)", errStalled, limit))
	defer cancel()
	fc, err := firecracker.Boot(ctx, c.cfg.Launcher, firecracker.Config{
		ID:     id,
		Size:   req.Limits.Size,
		Kernel: c.cfg.Kernel,
		Initrd: c.cfg.Initrd,
		Rootfs: req.Pack.RootfsPath,
		BootArgs: fmt.Sprintf("%s emberd.interpreter=%s emberd.disk_mib=%d emberd.pids=%d",
			bootArgs, req.Pack.Interpreter, req.Limits.DiskMiB, req.Limits.PIDs),
	}, c.cfg.Faults)
	if err != nil {
		return nil, err
	}
	session, err := c.hello(ctx, fc)
	if err != nil {
		err = fmt.Errorf("%w\nconsole: %s", err, strings.TrimSpace(fc.Console()))
		return nil, errors.Join(err, fc.Kill(ctx))
	}
	return &VM{ID: id, Agent: session, BootPath: sandbox.ColdBoot, vm: fc}, nil
}

// hello waits until the guest's agent listens and has answered the handshake.
func (c *Cold) hello(ctx context.Context, fc *firecracker.VM) (*agent.Session, error) {
	if err := c.cfg.Faults.Hit(FaultHello); err != nil {
		return nil, err
	}
	tick := time.NewTicker(dialInterval)
	defer tick.Stop()
	for {
		conn, err := fc.Dial(ctx, agentPort)
		if err == nil {
			session, err := agent.Open(ctx, conn, c.cfg.Log)
			if err != nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return session, err
		}
		next := tick.C
		if !errors.Is(err, vsock.ErrRefused) {
			next = nil // the socket is of no use any more
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-fc.Done():
			return nil, errEnded
		case <-next:
		}
	}
}
