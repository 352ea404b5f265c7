package firecracker

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [Boot], one for each step after the launch.
const (
	FaultEquip   = "firecracker.equip"
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
	FaultLaunch, FaultAPI, FaultEquip, FaultMachine, FaultCPU, FaultKernel, FaultDrive, FaultVsock, FaultEntropy,
	FaultStart, FaultConfine,
}

// Config is the VM to boot. Paths are the host's.
type Config struct {
	ID       sandbox.VMID
	Size     sandbox.Size
	Kernel   string
	Initrd   string
	Rootfs   string
	BootArgs string
	// Interface is the VM's network interface, nil if it has none.
	Interface *Interface
	// Snapshots says that [VM.Snapshot] is going to be called.
	Snapshots bool
}

// Boot starts a microVM and returns when its vCPUs run. The guest is then at
// the beginning of its boot: nothing answers on vsock yet.
func Boot(ctx context.Context, l Launcher, cfg Config, faults *fault.Set) (*VM, error) {
	fileMiB := 0
	if cfg.Snapshots {
		fileMiB = cfg.Size.MemoryMiB
	}
	shell, err := Launch(ctx, l, cfg.ID, fileMiB, faults)
	if err != nil {
		return nil, err
	}
	files := map[string]string{kernelFile: cfg.Kernel, initrdFile: cfg.Initrd, rootfsFile: cfg.Rootfs}
	vm, err := shell.become(ctx, cfg.Size, files, slices.Concat([]step{
		call(FaultMachine, http.MethodPut, "/machine-config", machineConfig{VCPUs: cfg.Size.VCPUs, MemoryMiB: cfg.Size.MemoryMiB}),
		call(FaultCPU, http.MethodPut, "/cpu-config", withoutVirtualisation),
		call(FaultKernel, http.MethodPut, "/boot-source", bootSource{KernelPath: "/" + kernelFile, InitrdPath: "/" + initrdFile, BootArgs: cfg.BootArgs}),
		call(FaultDrive, http.MethodPut, "/drives/rootfs", drive{ID: "rootfs", Path: "/" + rootfsFile, IsReadOnly: true}),
		call(FaultVsock, http.MethodPut, "/vsock", vsockDevice{GuestCID: guestCID, UDSPath: "/" + vsockSocket}),
		call(FaultEntropy, http.MethodPut, "/entropy", entropyDevice{}),
	}, cfg.Interface.steps(shell.process), []step{
		call(FaultStart, http.MethodPut, "/actions", action{Type: "InstanceStart"}),
	}), faults)
	if err != nil {
		return nil, fmt.Errorf("boot microVM: %w", err)
	}
	return vm, nil
}
