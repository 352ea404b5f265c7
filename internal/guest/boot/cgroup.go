package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where cgroup v2 is mounted.
const cgroupRoot = "/sys/fs/cgroup"

// ProgramsCgroup is the control group that holds those of all programs. The
// agent is outside of it: however many processes and however much CPU time
// programs use, the agent has its own.
const ProgramsCgroup = cgroupRoot + "/programs"

// reservedPIDs is how many processes and threads the system can have beside
// those of programs: the kernel's own and the agent's.
const reservedPIDs = 256

// ReservedMemory is how much of the memory programs leave to the kernel and the
// agent, in bytes, beside [KeptOutput]. So the OOM killer comes, among programs,
// before the agent has to look for memory.
const ReservedMemory = 16 << 20

// The bounds of [KeptOutput].
const (
	leastOutput = 4 << 20
	mostOutput  = 32 << 20
)

// KeptOutput is how much of the memory the agent has for what programs wrote that
// nobody has read, in bytes: a part of it that programs hardly miss.
func KeptOutput() (int, error) {
	total, err := totalMemory()
	return int(min(max(total/32, leastOutput), mostOutput)), err
}

// totalMemory is how much there is, in bytes.
func totalMemory() (uint64, error) {
	var system unix.Sysinfo_t
	if err := unix.Sysinfo(&system); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return system.Totalram * uint64(system.Unit), nil
}

// groupPrograms makes the control group of programs. Each program has its own in
// there, which counts what that program ran into.
func groupPrograms() error {
	if err := writeKernel(filepath.Join(cgroupRoot, "cgroup.subtree_control"), "+cpu +memory +pids"); err != nil {
		return err
	}
	if err := os.Mkdir(ProgramsCgroup, 0o755); err != nil { //nolint:gosec // for all to see
		return err
	}
	if err := writeKernel(filepath.Join(ProgramsCgroup, "cgroup.subtree_control"), "+memory +pids"); err != nil {
		return err
	}
	total, err := totalMemory()
	if err != nil {
		return err
	}
	output, err := KeptOutput()
	if err != nil {
		return err
	}
	most := total - ReservedMemory - uint64(output)
	return writeKernel(filepath.Join(ProgramsCgroup, "memory.max"), strconv.FormatUint(most, 10))
}

// LimitProcesses bounds how many processes and threads programs may have
// together.
func LimitProcesses(pids int) error {
	if err := writeKernel(filepath.Join(ProgramsCgroup, "pids.max"), strconv.Itoa(pids)); err != nil {
		return err
	}
	// The kernel has a limit for the whole system, which it derives from the
	// memory. If programs met that one first, the agent would meet it too.
	const threadsMax = "/proc/sys/kernel/threads-max"
	b, err := os.ReadFile(threadsMax)
	if err != nil {
		return err
	}
	all, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %w", threadsMax, err)
	}
	if all >= pids+reservedPIDs {
		return nil
	}
	return writeKernel(threadsMax, strconv.Itoa(pids+reservedPIDs))
}

// writeKernel writes a file of the kernel's: in one write, and never creating
// it.
func writeKernel(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
