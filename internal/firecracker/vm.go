// Package firecracker is one microVM: a Firecracker process, its API socket and
// its vsock.
//
// The one idea: a [VM] is made by [Boot] whole or not at all. Whatever step
// fails, the process is gone and its files are cleared before Boot returns.
// Every path that goes over the API is relative to the VMM's own root
// directory, so it is the same for each VM.
//
// The package does not confine the process, that is the [Launcher]'s job, and
// it knows no packs, no agent and no HTTP API of emberd's own.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/vsock"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
	"github.com/emberd/emberd/internal/x/printable"
)

// Names of a VM's files in the root directory of its VMM.
const (
	apiSocket   = "api.sock"
	vsockSocket = "vm.sock"
	kernelFile  = "kernel"
	initrdFile  = "initrd"
	rootfsFile  = "rootfs"
)

// guestCID is the guest's vsock address. It is private to each VMM.
const guestCID = 3

// Fault points of [Boot], one for each step.
const (
	FaultLaunch  = "firecracker.launch"
	FaultAPI     = "firecracker.api"
	FaultMachine = "firecracker.machine"
	FaultCPU     = "firecracker.cpu"
	FaultKernel  = "firecracker.kernel"
	FaultDrive   = "firecracker.drive"
	FaultVsock   = "firecracker.vsock"
	FaultEntropy = "firecracker.entropy"
	FaultStart   = "firecracker.start"
	FaultConfine = "firecracker.confine"
)

// FaultPoints are the steps of [Boot] that a test can break.
var FaultPoints = []string{
	FaultLaunch, FaultAPI, FaultMachine, FaultCPU, FaultKernel, FaultDrive, FaultVsock, FaultEntropy, FaultStart,
	FaultConfine,
}

// A Launcher starts Firecracker, confined.
type Launcher interface {
	// Launch starts one VMM. It returns once the process runs, which may be
	// before its API socket exists; on error nothing is left of it. ctx bounds
	// the launch and not the life of the process.
	Launch(ctx context.Context, spec LaunchSpec) (Process, error)
}

// LaunchSpec is what a VMM needs around it.
type LaunchSpec struct {
	ID   sandbox.VMID
	Size sandbox.Size
	// Files are placed in the root directory of the VMM before it starts, as
	// name to path on the host. They are shared between VMs and never written.
	Files map[string]string
	// Args are Firecracker's own arguments.
	Args []string
}

// Process is a VMM that was launched.
type Process interface {
	// Dial connects to a socket that the VMM has made in its root directory.
	Dial(ctx context.Context, name string) (net.Conn, error)
	// CheckConfined returns an error unless the VMM is confined as it has to be
	// while a guest runs.
	CheckConfined() error
	// Jail is what confines the VMM.
	Jail() sandbox.Jail
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Console is the tail of what the guest and the VMM wrote to their console:
	// bytes that nobody vouches for.
	Console() string
	// Kill ends the process and removes everything that was made for it. It
	// may be called again, and on a process that has ended already.
	Kill(ctx context.Context) error
}

// Config is the VM to boot. Paths are the host's.
type Config struct {
	ID       sandbox.VMID
	Size     sandbox.Size
	Kernel   string
	Initrd   string
	Rootfs   string
	BootArgs string
}

// VM is a running microVM. Its methods may be called by any number of
// goroutines.
type VM struct {
	process Process
}

// Boot starts a microVM and returns when its vCPUs run. The guest is then at
// the beginning of its boot: nothing answers on vsock yet.
func Boot(ctx context.Context, l Launcher, cfg Config, faults *fault.Set) (_ *VM, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = joinUndo(err, undo.Unwind(ctx))
		}
	}()

	if err := faults.Hit(FaultLaunch); err != nil {
		return nil, err
	}
	process, err := l.Launch(ctx, LaunchSpec{
		ID:    cfg.ID,
		Size:  cfg.Size,
		Files: map[string]string{kernelFile: cfg.Kernel, initrdFile: cfg.Initrd, rootfsFile: cfg.Rootfs},
		// At a lower level Firecracker logs each request, which would drive the
		// guest's last words out of the console's tail.
		Args: []string{"--api-sock", "/" + apiSocket, "--level", "Warning"},
	})
	if err != nil {
		return nil, fmt.Errorf("launch VMM: %w", err)
	}
	undo.Add(FaultLaunch, process.Kill)

	if err := configure(ctx, process, cfg, faults); err != nil {
		return nil, fmt.Errorf("boot microVM: %w\nconsole: %s", err, lastWords(process))
	}
	undo.Release()
	return &VM{process: process}, nil
}

// configure describes the VM to its VMM, one API call a step, and starts it.
func configure(ctx context.Context, process Process, cfg Config, faults *fault.Set) error {
	api := newAPIClient(func(ctx context.Context) (net.Conn, error) { return process.Dial(ctx, apiSocket) })
	defer api.close()
	if err := faults.Hit(FaultAPI); err != nil {
		return err
	}
	if err := api.waitReady(ctx, process.Done()); err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	for _, step := range []struct {
		fault, path string
		body        any
	}{
		{FaultMachine, "/machine-config", machineConfig{VCPUs: cfg.Size.VCPUs, MemoryMiB: cfg.Size.MemoryMiB}},
		{FaultCPU, "/cpu-config", withoutVirtualisation},
		{FaultKernel, "/boot-source", bootSource{KernelPath: "/" + kernelFile, InitrdPath: "/" + initrdFile, BootArgs: cfg.BootArgs}},
		{FaultDrive, "/drives/rootfs", drive{ID: "rootfs", Path: "/" + rootfsFile, IsReadOnly: true}},
		{FaultVsock, "/vsock", vsockDevice{GuestCID: guestCID, UDSPath: "/" + vsockSocket}},
		{FaultEntropy, "/entropy", entropyDevice{}},
		{FaultStart, "/actions", action{Type: "InstanceStart"}},
	} {
		if err := faults.Hit(step.fault); err != nil {
			return err
		}
		if err := api.put(ctx, step.path, step.body); err != nil {
			return err
		}
	}
	// Firecracker has put up its last seccomp filter when it answers the start.
	// One that was built without filters, or could not put them up, must not be
	// handed over.
	if err := errors.Join(faults.Hit(FaultConfine), process.CheckConfined()); err != nil {
		return fmt.Errorf("VMM is not confined: %w", err)
	}
	return nil
}

// Dial connects to a vsock port of the guest. The error wraps
// [vsock.ErrRefused] as long as nothing in the guest listens there.
func (vm *VM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := vm.process.Dial(ctx, vsockSocket)
	if err != nil {
		return nil, fmt.Errorf("connect to Firecracker's vsock: %w", err)
	}
	return vsock.Connect(ctx, conn, port)
}

// Done is closed when the VMM has ended, for whatever reason.
func (vm *VM) Done() <-chan struct{} { return vm.process.Done() }

// Console is the end of what guest and VMM wrote to their console, in a form
// that an error or a log can hold.
func (vm *VM) Console() string { return lastWords(vm.process) }

// Jail is what confines the VMM.
func (vm *VM) Jail() sandbox.Jail { return vm.process.Jail() }

// Kill ends the microVM and removes everything that was made for it. It may be
// called again.
func (vm *VM) Kill(ctx context.Context) error { return vm.process.Kill(ctx) }

// maxLastWords keeps a record of the log that quotes a console within 16 KiB,
// whatever the guest wrote: a byte may take three.
const maxLastWords = 4 << 10

func lastWords(p Process) string { return printable.Tail(p.Console(), maxLastWords) }

func joinUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	return fmt.Errorf("%w (and %w)", err, undo)
}
