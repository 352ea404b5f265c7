package doctor

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// KVM says what virtualisation this host offers.
type KVM struct {
	// Usable means that Firecracker can run here.
	Usable bool
	// Emulated means that the processor under KVM is itself emulated in
	// software, as it is inside the machine: everything works, slowly.
	Emulated bool
	// Reason says why, in a sentence.
	Reason string
}

// String is "hardware", "emulated" or "none".
func (k KVM) String() string {
	switch {
	case !k.Usable:
		return "none"
	case k.Emulated:
		return "emulated"
	default:
		return "hardware"
	}
}

// HostKVM is [DetectKVM] of this host.
func HostKVM() KVM { return DetectKVM(os.DirFS("/")) }

// machineRole is on the kernel command line inside the machine, and only there.
const machineRole = "emberd.role=machine"

// DetectKVM decides by what the processor can do and by whether there is a
// device, in this order. It does not open the device: some hypervisors offer
// one that opens and answers and in which no ordinary kernel boots.
func DetectKVM(host fs.FS) KVM {
	cpuinfo, err := fs.ReadFile(host, "proc/cpuinfo")
	if err != nil {
		return KVM{Reason: "the processor's features are not known: " + err.Error()}
	}
	flag := virtFlag(string(cpuinfo))
	if flag == "" {
		reason := "no hardware virtualisation: the processor shows neither vmx nor svm"
		if isDevice(host, "dev/kvm") {
			reason += ", whatever /dev/kvm pretends"
		}
		return KVM{Reason: reason}
	}
	if !isDevice(host, "dev/kvm") {
		return KVM{Reason: "the processor has " + flag + ", but there is no /dev/kvm: " + module(flag) + " is not loaded"}
	}
	cmdline, _ := fs.ReadFile(host, "proc/cmdline")
	if slices.Contains(strings.Fields(string(cmdline)), machineRole) {
		return KVM{Usable: true, Emulated: true, Reason: "emulated " + flag + ", inside the machine"}
	}
	return KVM{Usable: true, Reason: "hardware virtualisation (" + flag + ")"}
}

// virtFlag returns the virtualisation flag of the processors in cpuinfo.
func virtFlag(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for flag := range strings.FieldsSeq(value) {
			if flag == "vmx" || flag == "svm" {
				return flag
			}
		}
	}
	return ""
}

func module(flag string) string {
	if flag == "vmx" {
		return "kvm_intel"
	}
	return "kvm_amd"
}

func isDevice(host fs.FS, name string) bool {
	info, err := fs.Stat(host, name)
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}

func checkKVM(_ context.Context, env Env, kvm KVM) Result {
	switch {
	case kvm.Usable && kvm.Emulated:
		return warn(kvm.Reason+": correct, and slow", "")
	case kvm.Usable:
		return ok(kvm.Reason)
	}
	cpuinfo, _ := fs.ReadFile(env.Host, "proc/cpuinfo")
	if flag := virtFlag(string(cpuinfo)); flag != "" {
		return fail(kvm.Reason, "sudo modprobe "+module(flag))
	}
	return warn(kvm.Reason+"; emberd runs in the machine here", "emberctl machine start")
}

func checkMachine(_ context.Context, env Env, kvm KVM) Result {
	if kvm.Usable {
		return ok("not needed: this host has KVM")
	}
	path, err := env.LookPath("qemu-system-x86_64")
	if err != nil {
		return fail("the machine needs QEMU, and there is none on PATH", "sudo emberctl setup")
	}
	return ok("the machine runs on " + path)
}
