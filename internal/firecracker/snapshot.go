package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [VM.Snapshot].
const (
	FaultPause = "firecracker.pause"
	FaultSave  = "firecracker.save"
	FaultTake  = "firecracker.take"
)

// SnapshotFaultPoints are the steps of [VM.Snapshot] that a test can break.
var SnapshotFaultPoints = []string{FaultPause, FaultSave, FaultTake}

// Fault points of [Shell.Restore].
const (
	FaultLoad   = "firecracker.load"
	FaultCopy   = "firecracker.copy"
	FaultResume = "firecracker.resume"
)

// RestoreFaultPoints are the steps of [Shell.Restore] that a test can break.
var RestoreFaultPoints = []string{FaultEquip, FaultLoad, FaultCopy, FaultResume, FaultConfine}

// Snapshot is a microVM that was stopped. Any number of VMs may be restored from
// it, at the same time too: its files are shared and never written, and must
// stay as they are for as long as one of the VMs runs.
type Snapshot struct {
	Size sandbox.Size
	// Rootfs is the image that the VM had as its root drive.
	Rootfs string
	// State holds the devices and the vCPUs, Memory the guest's memory.
	State, Memory string
}

// SnapshotIn is the snapshot that [VM.Snapshot] left in dir.
func SnapshotIn(dir string, size sandbox.Size, rootfs string) Snapshot {
	return Snapshot{
		Size: size, Rootfs: rootfs,
		State: filepath.Join(dir, stateFile), Memory: filepath.Join(dir, memoryFile),
	}
}

// Snapshot stops a VM that was booted for it, for good, and leaves the snapshot
// in dir, on the filesystem of the jails. Nothing may be connected to the guest.
// The caller kills the VM.
func (vm *VM) Snapshot(ctx context.Context, dir string, faults *fault.Set) error {
	api := newAPIClient(vm.dialAPI)
	defer api.close()
	for _, step := range []step{
		call(FaultPause, http.MethodPatch, "/vm", vmState{State: "Paused"}),
		call(FaultSave, http.MethodPut, "/snapshot/create", snapshotCreate{Type: "Full", StatePath: "/" + stateFile, MemoryPath: "/" + memoryFile}),
	} {
		if err := faults.Hit(step.fault); err != nil {
			return err
		}
		if err := step.do(ctx, api); err != nil {
			return fmt.Errorf("snapshot: %w\nconsole: %s", err, vm.Console())
		}
	}
	if err := faults.Hit(FaultTake); err != nil {
		return err
	}
	err := vm.process.Take(ctx, map[string]string{
		stateFile: filepath.Join(dir, stateFile), memoryFile: filepath.Join(dir, memoryFile),
	})
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// RestoreOptions are what one VM of a snapshot has of its own.
type RestoreOptions struct {
	// Written are the pages that the guest is going to write to, of which it gets
	// its own copies before it goes on; see [VM.Written].
	Written Pages
	// Attach makes the device of the network interface, nil if the VM of the
	// snapshot has none. It is [Interface.Attach].
	Attach Attach
}

// Restore makes the shell the VM of a snapshot and returns when its vCPUs run:
// the guest goes on where it was stopped, except that its connections are gone.
// On error nothing is left of the shell.
func (s *Shell) Restore(ctx context.Context, snap Snapshot, opt RestoreOptions, faults *fault.Set) (*VM, error) {
	files := map[string]string{rootfsFile: snap.Rootfs, stateFile: snap.State, memoryFile: snap.Memory}
	var steps []step
	if opt.Attach != nil { // the VMM opens the device when it loads the VM
		steps = append(steps, opt.Attach.step(s.process))
	}
	vm, err := s.become(ctx, snap.Size, files, append(steps,
		call(FaultLoad, http.MethodPut, "/snapshot/load", snapshotLoad{
			StatePath: "/" + stateFile,
			Memory:    memoryBackend{Type: "File", Path: "/" + memoryFile},
		}),
		step{FaultCopy, func(context.Context, *apiClient) error { return s.copyAhead(opt.Written, snap) }},
		call(FaultResume, http.MethodPatch, "/vm", vmState{State: "Resumed"}),
	), faults)
	if err != nil {
		return nil, fmt.Errorf("restore microVM: %w", err)
	}
	return vm, nil
}

func (s *Shell) copyAhead(pages Pages, snap Snapshot) error {
	if len(pages) == 0 {
		return nil
	}
	memory, err := openMemory(s.process.Jail().PID, snap.Memory)
	if err != nil {
		return err
	}
	return errors.Join(memory.copyAhead(pages), memory.close())
}

// Written returns the pages of its memory that a VM, which was restored from that
// snapshot, has written to by now. Another VM that is going to do the same can be
// given copies of them ahead. The error says why that cannot be done on this host.
func (vm *VM) Written(snap Snapshot) (Pages, error) {
	memory, err := openMemory(vm.process.Jail().PID, snap.Memory)
	if err != nil {
		return nil, err
	}
	pages, err := memory.written()
	return pages, errors.Join(err, memory.close())
}
