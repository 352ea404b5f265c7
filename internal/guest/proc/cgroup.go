package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/emberd/emberd/internal/guest/reaper"
)

// groups makes the control groups of runs. A nil *groups makes none.
type groups struct {
	root string

	mu   sync.Mutex
	next int
	left []string // directories that still had processes when their run ended
}

// group is the control group of one run; the zero value stands for none. Its files
// are opened before the run, as every program waits for what they say at the end.
type group struct {
	of           *groups
	dir          *os.File
	memory, pids *os.File // events; nil where there is no such controller
}

// create makes an empty group. It is also the time to remove the groups whose
// background processes have ended since.
func (g *groups) create() (group, error) {
	if g == nil {
		return group{}, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweep()
	g.next++
	path := filepath.Join(g.root, fmt.Sprintf("exec-%d", g.next))
	if err := os.Mkdir(path, 0o700); err != nil {
		return group{}, fmt.Errorf("make cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return group{}, errors.Join(fmt.Errorf("open cgroup: %w", err), os.Remove(path))
	}
	made := group{of: g, dir: dir}
	made.memory, _ = os.Open(filepath.Join(path, "memory.events"))
	made.pids, _ = os.Open(filepath.Join(path, "pids.events"))
	return made, nil
}

// sweep removes the groups that are empty by now. The kernel refuses to remove
// one that is not.
func (g *groups) sweep() {
	kept := g.left[:0]
	for _, path := range g.left {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			kept = append(kept, path)
		}
	}
	g.left = kept
}

// enter makes a process that is started with attr begin in the group.
func (g group) enter(attr *syscall.SysProcAttr) {
	if g.of != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(g.dir.Fd())
	}
}

// join moves a process into the group.
func (g group) join(child *reaper.Child) error {
	if g.of == nil {
		return nil
	}
	err := os.WriteFile(filepath.Join(g.dir.Name(), "cgroup.procs"), strconv.AppendInt(nil, int64(child.Pid()), 10), 0)
	if err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// kill ends every process of the group. Without a control group it ends the
// process group that child leads.
func (g group) kill(child *reaper.Child) {
	if g.of != nil && os.WriteFile(filepath.Join(g.dir.Name(), "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	_ = syscall.Kill(-child.Pid(), syscall.SIGKILL)
}

// release gives the group up: it is removed as soon as it is empty.
func (g group) release() {
	if g.of == nil {
		return
	}
	for _, f := range []*os.File{g.dir, g.memory, g.pids} {
		_ = f.Close()
	}
	g.of.mu.Lock()
	defer g.of.mu.Unlock()
	g.of.left = append(g.of.left, g.dir.Name())
	g.of.sweep()
}
