package oracle

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// takeProcesses lists every process that is not the kernel's own, and the
// network namespaces they live in.
func (s *Snapshot) takeProcesses() error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue // it has ended since
		}
		pid, parent := field(status, "Pid"), field(status, "PPid")
		if pid == "2" || parent == "2" {
			continue // a thread of the kernel
		}
		uid, err := strconv.Atoi(field(status, "Uid"))
		if err != nil {
			return fmt.Errorf("process %s: %w", pid, err)
		}
		name := field(status, "Name")
		s.items[fmt.Sprintf("process %s %s uid %d", pid, name, uid)] = true
		if ns, err := os.Readlink(dir + "/ns/net"); err == nil {
			s.items["network namespace "+ns] = true
		}
		if uid >= s.cfg.FirstUser && uid < s.cfg.FirstUser+s.cfg.Users {
			if why := unconfined(dir, status); why != "" {
				s.escapes[fmt.Sprintf("process %s %s uid %d %s", pid, name, uid, why)] = true
			}
		}
	}
	return nil
}

// jailNamespaces are those that a VMM shares with nobody.
var jailNamespaces = []string{"net", "mnt", "pid", "ipc", "uts"}

// unconfined says in what a process of a VMM's user is not in its jail; it is
// empty for one that is, and for one that ends meanwhile.
func unconfined(dir string, status []byte) string {
	if _, err := os.Readlink(dir + "/exe"); err != nil {
		return "" // dead, and not yet collected
	}
	for _, ns := range jailNamespaces {
		theirs, err := os.Readlink(dir + "/ns/" + ns)
		if err != nil {
			return ""
		}
		if ours, err := os.Readlink("/proc/self/ns/" + ns); err == nil && ours == theirs {
			return "is in the host's " + ns + " namespace"
		}
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		if caps := field(status, set); strings.Trim(caps, "0") != "" {
			return "has capabilities: " + set + " " + caps
		}
	}
	cgroups, err := os.ReadFile(dir + "/cgroup")
	if err == nil && !strings.Contains(string(cgroups), "0::/emberd-") {
		return "is in no cgroup of a jail"
	}
	return ""
}

// takeMounts lists the mounts, and the cgroups where a mount says that they are.
func (s *Snapshot) takeMounts() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		s.items["mount "+strings.TrimSpace(line)] = true
		fields := strings.Fields(line)
		if i := slices.Index(fields, "-"); i > 4 && i+1 < len(fields) && fields[i+1] == "cgroup2" {
			if err := s.takeCgroups(fields[4]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Snapshot) takeCgroups(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed since
		}
		if err == nil && d.IsDir() {
			s.items["cgroup "+path] = true
		}
		return err
	})
}

func (s *Snapshot) takeLinks() error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, l := range links {
		s.items["link "+l.Name] = true
	}
	return nil
}

// takeLoops lists the loop devices that have a file.
func (s *Snapshot) takeLoops() error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil { // else it was let go since
			s.items[fmt.Sprintf("loop device %s of %q", strings.Split(file, "/")[3], strings.TrimSpace(string(backing)))] = true
		}
	}
	return nil
}

// takeSockets lists the Unix sockets that have a name.
func (s *Snapshot) takeSockets() error {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	const pathColumn = 7
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > pathColumn && fields[pathColumn] != "Path" {
			s.items["Unix socket "+fields[pathColumn]] = true
		}
	}
	return nil
}

// concerns are what a kernel says when something broke that must not. That a
// cgroup ran out of memory is none of it: this is what the limit is for.
var concerns = []string{
	"BUG:", "Oops", "WARNING:", "Kernel panic", "general protection fault", "soft lockup", "hard LOCKUP",
	"rcu_sched detected stalls", "blocked for more than", "segfault at", "CONSTRAINT_NONE", "UBSAN:", "KASAN:",
}

// klogSize is more than the kernel keeps by default.
const klogSize = 1 << 20

// takeKernelLog notes the lines of concern. Each has its time, so no two are
// the same.
func (s *Snapshot) takeKernelLog() error {
	buf := make([]byte, klogSize)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if errors.Is(err, unix.EPERM) {
		return nil // only root may read it, where kernel.dmesg_restrict is set
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(buf[:n])) {
		for _, c := range concerns {
			if strings.Contains(line, c) {
				s.kernel[strings.TrimSpace(line)] = true
			}
		}
	}
	return nil
}

// field is the first word of a line of a file like /proc/PID/status.
func field(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			if words := strings.Fields(value); len(words) > 0 {
				return words[0]
			}
		}
	}
	return ""
}
