// Package firecracker is one microVM: a Firecracker process, its API socket and
// its vsock.
//
// The one idea: a [VM] is made whole or not at all, out of a [Shell], which is a
// VMM that has no VM yet: by a boot, or by the restore of a [Snapshot]. Whatever
// step fails, the process is gone and its files are cleared before the call
// returns. Every path that goes over the API is relative to the VMM's own root
// directory, so it is the same for each VM, which is why a snapshot can be
// restored in any jail.
//
// The package does not confine the process, that is the [Launcher]'s job, and
// it knows no packs, no agent and no HTTP API of emberd's own.
package firecracker

import (
	"context"
	"fmt"
	"net"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/vsock"
	"github.com/emberd/emberd/internal/x/printable"
)

// Names of a VM's files in the root directory of its VMM.
const (
	apiSocket   = "api.sock"
	vsockSocket = "vm.sock"
	kernelFile  = "kernel"
	initrdFile  = "initrd"
	rootfsFile  = "rootfs"
	stateFile   = "state"
	memoryFile  = "mem"
)

// guestCID is the guest's vsock address. It is private to each VMM.
const guestCID = 3

// A Launcher starts Firecracker, confined.
type Launcher interface {
	// Launch starts one VMM. It returns once the process runs, which may be
	// before its API socket exists; on error nothing is left of it. ctx bounds
	// the launch and not the life of the process.
	Launch(ctx context.Context, spec LaunchSpec) (Process, error)
}

// An Adopter finds the VMMs again that an earlier daemon launched.
type Adopter interface {
	// Left names the VMMs of which anything was left when this daemon began.
	Left() []sandbox.VMID
	// Adopt takes over the one with that handle. On error it is as it was.
	Adopt(id sandbox.VMID, handle []byte) (Process, error)
	// Remove ends one that was not adopted and removes everything that was made
	// for it. That there is nothing is no error.
	Remove(ctx context.Context, id sandbox.VMID) error
}

// LaunchSpec is what a VMM needs around it.
type LaunchSpec struct {
	ID sandbox.VMID
	// FileMiB is the size of the largest file that the VMM has to write, zero
	// for one that writes none.
	FileMiB int
	// Args are Firecracker's own arguments.
	Args []string
}

// Process is a VMM that was launched.
type Process interface {
	// Dial connects to a socket that the VMM has made in its root directory.
	Dial(ctx context.Context, name string) (net.Conn, error)
	// Equip makes the VMM's surroundings fit for a VM of that size, and places
	// files in its root directory, as name to path on the host. They are shared
	// between VMs and never written.
	Equip(size sandbox.Size, files map[string]string) error
	// Take ends the process and moves files that it has made, as name in its
	// root directory to new path on the host, where they are to be shared.
	Take(ctx context.Context, files map[string]string) error
	// CheckConfined returns an error unless the VMM is confined as it has to be
	// while a guest runs.
	CheckConfined() error
	// Jail is what confines the VMM.
	Jail() sandbox.Jail
	// Handle is what [Adopter.Adopt] finds the process with.
	Handle() ([]byte, error)
	// Leave lets go of the process, which goes on. Nothing else is called any
	// more.
	Leave()
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// OOMKilled tells, once the process has ended, whether the host's OOM killer
	// did it.
	OOMKilled() bool
	// Console is the tail of what the guest and the VMM wrote to their console:
	// bytes that nobody vouches for.
	Console() string
	// Kill ends the process and removes everything that was made for it. It
	// may be called again, and on a process that has ended already.
	Kill(ctx context.Context) error
}

// VM is a running microVM. Its methods may be called by any number of
// goroutines.
type VM struct {
	process Process
}

// Adopt takes over a VM that an earlier daemon has made, if it is confined as it
// was then. On error after which the VM is not as it was, nothing is left of it.
func Adopt(ctx context.Context, a Adopter, id sandbox.VMID, handle []byte) (*VM, error) {
	process, err := a.Adopt(id, handle)
	if err != nil {
		return nil, err
	}
	if err := process.CheckConfined(); err != nil {
		return nil, joinUndo(fmt.Errorf("VMM is not confined: %w", err), process.Kill(ctx))
	}
	return &VM{process: process}, nil
}

// Handle is what [Adopt] finds the VM with.
func (vm *VM) Handle() ([]byte, error) { return vm.process.Handle() }

// Leave lets go of the VM, which goes on. Nobody may use it here any more.
func (vm *VM) Leave() { vm.process.Leave() }

func (vm *VM) dialAPI(ctx context.Context) (net.Conn, error) { return vm.process.Dial(ctx, apiSocket) }

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

// OOMKilled tells of a VMM that has ended whether the host's OOM killer did it.
func (vm *VM) OOMKilled() bool { return vm.process.OOMKilled() }

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
