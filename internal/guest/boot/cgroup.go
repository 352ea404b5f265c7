package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// groupPrograms makes the control group of programs.
func groupPrograms() error {
	if err := writeKernel(filepath.Join(cgroupRoot, "cgroup.subtree_control"), "+cpu +pids"); err != nil {
		return err
	}
	return os.Mkdir(ProgramsCgroup, 0o755) //nolint:gosec // for all to see
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
