package telemetry

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/x/flatkeyed"
)

// What looking at VMMs may cost. Their cgroups are read again after fresh. The
// kernel adds up a VMM's memory page by page, so that is read again after stale
// only, and no more of it at a time than fits into budget: the oldest first, the
// others when they are asked for next.
const (
	fresh  = time.Second
	stale  = 10 * time.Second
	budget = 50 * time.Millisecond
)

// VMM is what the host says of the process behind one microVM.
type VMM struct {
	ID  string
	PID int
	// CPU is the time that it had, guest and VMM together.
	CPU time.Duration
	// Memory is as it was when it was last looked at, zero if that was never.
	Memory Memory
	asOf   time.Time
}

// Memory is what a VMM uses, in bytes. What several of them share, as those of one
// template do, is divided among them, so that the sum over all is what they take
// of the host.
type Memory struct {
	// Own is nobody else's; Shared is its part of files that are mapped: the
	// template and the executable.
	Own, Shared int64
}

// VMMs looks at the VMMs of one daemon: of sandboxes, of the pool, and those that
// wait for a template. It goes by their cgroups, so it does not matter who started
// them, or when. Its methods may be called by any number of goroutines.
type VMMs struct {
	host   fs.FS
	cgroup string
	now    func() time.Time

	mu   sync.Mutex
	last []VMM
	asOf time.Time
}

// NewVMMs looks at the children of a cgroup, in the host's file system. The cgroup
// is named as in /proc/PID/cgroup.
func NewVMMs(host fs.FS, cgroup string) *VMMs {
	return &VMMs{host: host, cgroup: path.Join("sys/fs/cgroup", cgroup), now: time.Now}
}

// All returns what is known of each VMM.
func (v *VMMs) All() []VMM {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	if v.asOf.IsZero() || now.Sub(v.asOf) >= fresh {
		v.last, v.asOf = v.look(), now
		v.weigh()
	}
	return slices.Clone(v.last)
}

// look reads the cgroups, and takes over what is known of the memory.
func (v *VMMs) look() []VMM {
	known := make(map[string]VMM, len(v.last))
	for _, vmm := range v.last {
		known[vmm.ID] = vmm
	}
	entries, _ := fs.ReadDir(v.host, v.cgroup) // there is none before the first VMM
	var all []VMM
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		dir := path.Join(v.cgroup, entry.Name())
		procs, err := fs.ReadFile(v.host, path.Join(dir, "cgroup.procs"))
		pid, _ := strconv.Atoi(string(bytes.TrimSpace(firstLine(procs))))
		if err != nil || pid == 0 {
			continue // it just ended
		}
		vmm := VMM{ID: entry.Name(), PID: pid}
		if stat, err := fs.ReadFile(v.host, path.Join(dir, "cpu.stat")); err == nil {
			vmm.CPU = time.Duration(flatkeyed.Value(stat, "usage_usec")) * time.Microsecond
		}
		if old := known[vmm.ID]; old.PID == pid {
			vmm.Memory, vmm.asOf = old.Memory, old.asOf
		}
		all = append(all, vmm)
	}
	return all
}

// weigh reads the memory of those of whom it was read longest ago.
func (v *VMMs) weigh() {
	began := v.now()
	var due []*VMM
	for i := range v.last {
		if vmm := &v.last[i]; began.Sub(vmm.asOf) >= stale {
			due = append(due, vmm)
		}
	}
	slices.SortStableFunc(due, func(a, b *VMM) int { return cmp.Compare(a.asOf.UnixNano(), b.asOf.UnixNano()) })
	for _, vmm := range due {
		now := v.now()
		if now.Sub(began) >= budget {
			return
		}
		rollup, err := fs.ReadFile(v.host, fmt.Sprintf("proc/%d/smaps_rollup", vmm.PID))
		if err != nil {
			continue // it just ended
		}
		vmm.Memory, vmm.asOf = parseRollup(string(rollup)), now
	}
}

// parseRollup reads the format of proc_pid_smaps_rollup(5).
func parseRollup(text string) Memory {
	var m Memory
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line, ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "Pss_Anon":
			m.Own = kib << 10
		case "Pss_File", "Pss_Shmem":
			m.Shared += kib << 10
		}
	}
	return m
}

func firstLine(b []byte) []byte {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return line
}
