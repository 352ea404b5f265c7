package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/vsock"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [Ready].
const (
	FaultHello = "provision.hello"
	FaultArm   = "provision.arm"
)

// FaultPoints are the steps of [Ready] that a test can break.
var FaultPoints = []string{FaultHello, FaultArm}

// agentPort is the vsock port the guest's agent listens on.
const agentPort = 1024

// dialInterval is how often the guest is asked whether its agent is up. One try
// costs a few system calls on the host and an interrupt in the guest.
const dialInterval = 10 * time.Millisecond

// reconnects is how often a connection may end before the agent has answered on
// it. A guest that goes on after a restore resets every connection it has, and
// may find one that was made a moment before.
const reconnects = 5

// errEnded is a VMM that is gone before its guest was up.
var errEnded = errors.New("the VMM ended before the guest was up")

// Identity is what makes a VM differ from others of its pack and size.
type Identity struct {
	ID       sandbox.VMID
	Limits   sandbox.Limits
	BootPath sandbox.BootPath
}

// Ready makes a VM out of a microVM whose vCPUs run: its agent has answered, and
// has armed it. On error nothing is left of the microVM.
func Ready(ctx context.Context, fc *firecracker.VM, who Identity, log *slog.Logger, faults *fault.Set) (*VM, error) {
	session, err := Hello(ctx, fc, log, faults)
	if err == nil {
		err = errors.Join(faults.Hit(FaultArm), session.Arm(ctx, agent.Identity{
			Hostname: string(who.ID), DiskMiB: who.Limits.DiskMiB, PIDs: who.Limits.PIDs,
		}))
		if err == nil {
			return &VM{ID: who.ID, Agent: session, BootPath: who.BootPath, vm: fc}, nil
		}
		err = errors.Join(err, session.Close())
	}
	err = fmt.Errorf("%w\nconsole: %s", err, strings.TrimSpace(fc.Console()))
	return nil, errors.Join(err, fc.Kill(ctx))
}

// Hello waits until the guest's agent listens and has answered the handshake.
func Hello(ctx context.Context, fc *firecracker.VM, log *slog.Logger, faults *fault.Set) (*agent.Session, error) {
	if err := faults.Hit(FaultHello); err != nil {
		return nil, err
	}
	tick := time.NewTicker(dialInterval)
	defer tick.Stop()
	for broken := 0; ; {
		session, err := greet(ctx, fc, log)
		if err == nil {
			return session, nil
		}
		if !errors.Is(err, vsock.ErrRefused) {
			if broken++; broken > reconnects || errors.Is(err, agent.ErrVersion) {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-fc.Done():
			return nil, errEnded
		case <-tick.C:
		}
	}
}

// greet tries once.
func greet(ctx context.Context, fc *firecracker.VM, log *slog.Logger) (*agent.Session, error) {
	conn, err := fc.Dial(ctx, agentPort)
	if err != nil {
		return nil, err
	}
	return agent.Open(ctx, conn, log)
}
