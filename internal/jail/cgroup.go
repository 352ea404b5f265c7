package jail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/flatkeyed"
)

// cgroupRoot is where the cgroup v2 hierarchy is mounted.
const cgroupRoot = "/sys/fs/cgroup"

// controllers are what a jail's limits need.
var controllers = []string{"cpu", "memory", "pids"}

// ioController limits reads and writes. Not every host has it, nor every
// filesystem one device to limit.
const ioController = "io"

// vmmProcesses bounds the threads of a VMM: its own, one for the API, one for
// each vCPU, and what KVM starts on its behalf.
const vmmProcesses = 32

// cpuPeriod is the interval over which CPU time is measured, in microseconds.
const cpuPeriod = 100_000

// ioLimits bound what a VMM may ask of the disk, in bytes and operations a
// second. It reads its pack, most of it from the page cache, and has nothing to
// write: the limits leave a disk to the neighbours, and slow no ordinary boot.
const (
	ioLimits      = "rbps=268435456 wbps=16777216 riops=10000 wiops=1000"
	ioReadsLimits = "rbps=268435456 wbps=max riops=10000 wiops=max"
)

// limitsFor is what the cgroup of a VM of that size allows, file to value. A VMM
// that has to write a file of fileMiB may do so at the disk's pace, and have all
// of it in the page cache. device is the disk that its files are on, "" if it
// cannot be limited.
func limitsFor(size sandbox.Size, fileMiB int, device string) map[string]string {
	limits := map[string]string{
		"memory.max":       strconv.Itoa((size.PromisedMiB() + fileMiB) << 20),
		"memory.swap.max":  "0",
		"memory.oom.group": "1",
		"cpu.max":          fmt.Sprintf("%d %d", size.VCPUs*cpuPeriod, cpuPeriod),
		"pids.max":         strconv.Itoa(vmmProcesses + size.VCPUs),
	}
	if device != "" {
		io := ioLimits
		if fileMiB > 0 {
			io = ioReadsLimits
		}
		limits["io.max"] = device + " " + io
	}
	return limits
}

// diskOf returns the disk that holds dir, as MAJOR:MINOR. A partition cannot be
// limited, its disk can; what has no disk of its own, as btrfs or a tmpfs,
// cannot.
func diskOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("disk of %s: %w", dir, err)
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + device)
	if err != nil {
		return "", fmt.Errorf("%s is not on a disk of its own", dir)
	}
	if _, err := os.Stat(filepath.Join(sys, "partition")); err != nil {
		return device, nil
	}
	disk, err := os.ReadFile(filepath.Join(filepath.Dir(sys), "dev"))
	if err != nil {
		return "", fmt.Errorf("disk of %s: %w", dir, err)
	}
	return string(bytes.TrimSpace(disk)), nil
}

// cgroupTree is the cgroup whose children hold one VMM each.
type cgroupTree struct {
	root string // the mount point of the hierarchy
	name string // the parent cgroup, relative to root
	io   bool   // it has the io controller
}

// openCgroups makes the parent cgroup and has it hand the controllers down.
func openCgroups(root, name string) (cgroupTree, error) {
	t := cgroupTree{root: root, name: name}
	available, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return t, fmt.Errorf("cgroup v2 is not mounted at %s: %w", root, err)
	}
	for _, c := range controllers {
		if !slices.Contains(strings.Fields(string(available)), c) {
			return t, fmt.Errorf("cgroup v2 has no %s controller at %s; it offers %q", c, root, bytes.TrimSpace(available))
		}
	}
	enabled := controllers
	if t.io = slices.Contains(strings.Fields(string(available)), ioController); t.io {
		enabled = append(slices.Clone(controllers), ioController)
	}
	if err := os.MkdirAll(t.path(""), 0o700); err != nil {
		return t, fmt.Errorf("cgroup: %w", err)
	}
	enable := []byte("+" + strings.Join(enabled, " +"))
	dir := root
	for _, elem := range append([]string{""}, strings.Split(name, "/")...) {
		dir = filepath.Join(dir, elem)
		if err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), enable); err != nil {
			return t, fmt.Errorf("cgroup: %w", err)
		}
	}
	return t, nil
}

func (t cgroupTree) path(child string, file ...string) string {
	return filepath.Join(append([]string{t.root, t.name, child}, file...)...)
}

// children are the cgroups below the parent.
func (t cgroupTree) children() ([]string, error) {
	entries, err := os.ReadDir(t.path(""))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// create makes the cgroup of one VMM. On error it is gone again.
func (t cgroupTree) create(child string, limits map[string]string) error {
	if err := os.Mkdir(t.path(child), 0o700); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if err := t.limit(child, limits); err != nil {
		return errors.Join(err, os.Remove(t.path(child)))
	}
	return nil
}

// limit sets the limits of the cgroup of one VMM, file to value.
func (t cgroupTree) limit(child string, limits map[string]string) error {
	for file, value := range limits {
		if err := writeFile(t.path(child, file), []byte(value)); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return nil
}

// holds checks that the kernel agrees that pid is in the cgroup: a VMM whose
// limits are not its own must not run.
func (t cgroupTree) holds(child string, pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return fmt.Errorf("cgroup of VMM: %w", err)
	}
	want := "0::/" + t.name + "/" + child
	for line := range strings.Lines(string(b)) {
		if strings.TrimSuffix(line, "\n") == want {
			return nil
		}
	}
	return fmt.Errorf("the VMM is in cgroup %q, not in %q", bytes.TrimSpace(b), want)
}

// oomKilled tells whether the OOM killer ended a process in the cgroup.
func (t cgroupTree) oomKilled(child string) bool {
	events, err := os.ReadFile(t.path(child, "memory.events"))
	if err != nil {
		return false // of a cgroup that is gone nothing is known
	}
	return flatkeyed.Value(events, "oom_kill") > 0
}

// kill ends every process in the cgroup and removes it. One that does not exist
// is no error.
func (t cgroupTree) kill(ctx context.Context, child string) error {
	if err := writeFile(t.path(child, "cgroup.kill"), []byte("1")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("cgroup: %w", err)
	}
	// A killed process leaves its cgroup a moment after the signal; until then
	// the directory is busy.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := os.Remove(t.path(child))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup still busy: %w", err)
		case <-tick.C:
		}
	}
}

// remove removes the parent, unless there is a cgroup in it.
func (t cgroupTree) remove() error {
	names, err := t.children()
	if err == nil && len(names) == 0 {
		err = os.Remove(t.path(""))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeFile writes a file of the kernel's: in one write, and never creating it.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}
