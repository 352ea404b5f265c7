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
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/telemetry/trace"
	"github.com/emberd/emberd/internal/version"
	"github.com/emberd/emberd/internal/vsock"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [Host.Ready].
const (
	FaultHello  = "provision.hello"
	FaultArm    = "provision.arm"
	FaultRecord = "provision.record"
)

// FaultPoints are the steps of [Host.Ready] that a test can break.
var FaultPoints = []string{FaultHello, FaultArm, FaultRecord}

// agentPort is the vsock port the guest's agent listens on.
const agentPort = 1024

// dialInterval is how often the guest is asked whether its agent is up. One try
// costs a few system calls on the host and an interrupt in the guest.
const dialInterval = 10 * time.Millisecond

// reconnects is how often a connection may end before the agent has answered on
// it. A guest that goes on after a restore resets every connection it has, and
// may find one that was made a moment before.
const reconnects = 5

// firstPatience is how long an agent that listens may take to answer on the first
// connection; each next one has twice as long. A guest that goes on after a restore
// forgets the connections that it has, and says so only to who speaks after that: a
// greeting that came before is never answered.
const firstPatience = 2 * time.Second

// errUnanswered is a connection on which the agent did not answer.
var errUnanswered = errors.New("the agent did not answer")

// errEnded is a VMM that is gone before its guest was up.
var errEnded = errors.New("the VMM ended before the guest was up")

// Records is where it is written how a VM is found again.
type Records interface {
	PutVM(vm store.VM) error
	ClaimVM(id sandbox.VMID) error
	DeleteVM(id sandbox.VMID) error
}

// Host is what VMs that are ready are made with.
type Host struct {
	// Records may be nil; then no VM outlives the daemon.
	Records Records
	Log     *slog.Logger
	Faults  *fault.Set
}

// Identity is what makes a VM differ from others of its pack and size.
type Identity struct {
	ID       sandbox.VMID
	Pack     pack.Pack
	Limits   sandbox.Limits
	BootPath sandbox.BootPath
	// Interface is what the VM was made with, nil if it has no network interface.
	Interface *Interface
	// Spare says that no sandbox waits for the VM.
	Spare bool
}

// Ready makes a VM out of a microVM whose vCPUs run: its agent has answered, and
// has armed it, and there is a record of it. On error nothing is left of the
// microVM and its network interface.
func (h Host) Ready(ctx context.Context, fc *firecracker.VM, who Identity) (_ *VM, err error) {
	ctx, span := trace.Start(ctx, "guest")
	defer func() { span.End(trace.Code(err)) }()
	session, err := Hello(ctx, fc, h.Log, h.Faults)
	if err == nil {
		vm := &VM{ID: who.ID, Agent: session, BootPath: who.BootPath, vm: fc, nic: who.Interface, records: h.Records}
		secret := agent.NewSecret()
		err = errors.Join(h.Faults.Hit(FaultArm), session.Arm(ctx, agent.Identity{
			Hostname: string(who.ID), DiskMiB: who.Limits.DiskMiB, PIDs: who.Limits.PIDs, Secret: secret,
			Network: who.Interface.guest(),
		}))
		if err == nil {
			err = h.record(vm, who, secret)
		}
		if err == nil {
			return vm, nil
		}
		return nil, errors.Join(h.lastWords(err, fc), vm.Kill(ctx))
	}
	return nil, errors.Join(h.lastWords(err, fc), who.Interface.Close(), fc.Kill(ctx))
}

func (h Host) lastWords(err error, fc *firecracker.VM) error {
	return fmt.Errorf("%w\nconsole: %s", err, strings.TrimSpace(fc.Console()))
}

// record writes down how the VM is found again.
func (h Host) record(vm *VM, who Identity, secret []byte) error {
	if err := h.Faults.Hit(FaultRecord); err != nil || h.Records == nil {
		return err
	}
	handle, err := vm.vm.Handle()
	if err != nil {
		return err
	}
	vm.rec = store.VM{
		ID: who.ID, Pack: who.Pack.Name, Rootfs: who.Pack.Digest, Emberd: version.Version,
		Limits: who.Limits, BootPath: who.BootPath, Network: who.Interface != nil, Spare: who.Spare, Secret: secret, Handle: handle,
	}
	return h.Records.PutVM(vm.rec)
}

// Hello waits until the guest's agent listens and has answered the handshake.
func Hello(ctx context.Context, fc *firecracker.VM, log *slog.Logger, faults *fault.Set) (*agent.Session, error) {
	if err := faults.Hit(FaultHello); err != nil {
		return nil, err
	}
	tick := time.NewTicker(dialInterval)
	defer tick.Stop()
	patience := firstPatience
	for broken := 0; ; {
		session, err := greet(ctx, patience, fc, log)
		if err == nil {
			return session, nil
		}
		if errors.Is(err, errUnanswered) && ctx.Err() == nil {
			log.Debug("agent did not answer, asking it on another connection", "waited_ms", patience.Milliseconds())
			patience *= 2
		} else if !errors.Is(err, vsock.ErrRefused) {
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
func greet(ctx context.Context, patience time.Duration, fc *firecracker.VM, log *slog.Logger) (*agent.Session, error) {
	conn, err := fc.Dial(ctx, agentPort)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errUnanswered)
	defer cancel()
	return agent.Open(ctx, conn, log)
}
