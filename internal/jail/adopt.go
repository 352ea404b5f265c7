package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/process"
)

// handle is what finds a VMM again.
type handle struct {
	Jail    sandbox.Jail `json:"jail"`
	FileMiB int          `json:"file_mib,omitempty"`
	Process process.ID   `json:"process"`
	// Console is the pipe that the VMM writes its console to.
	Console process.File `json:"console"`
}

// consoleFD is the VMM's own descriptor of its console.
const consoleFD = 1

// Handle is what [Jailer.Adopt] finds the VMM with, whatever became of the
// daemon. It is asked for once the jailer has become Firecracker.
func (p *Process) Handle() ([]byte, error) {
	h := handle{Jail: p.Jail(), FileMiB: p.spec.FileMiB}
	var err error
	if h.Process, err = process.Of(p.PID()); err != nil {
		return nil, fmt.Errorf("identity of VMM: %w", err)
	}
	if h.Console, err = process.FileAt(consolePath(p.PID())); err != nil {
		return nil, fmt.Errorf("console of VMM: %w", err)
	}
	return json.Marshal(h)
}

func consolePath(pid int) string { return fmt.Sprintf("/proc/%d/fd/%d", pid, consoleFD) }

// Left names the VMMs of which an earlier daemon left anything when this one was
// opened: a cgroup or a root directory. What has another name than a microVM's is
// nothing of emberd's.
func (j *Jailer) Left() []sandbox.VMID { return j.left }

func (j *Jailer) look() ([]sandbox.VMID, error) {
	names, err := j.cgroups.children()
	if err != nil {
		return nil, err
	}
	jails, err := j.children()
	if err != nil {
		return nil, fmt.Errorf("looking for jails: %w", err)
	}
	var left []sandbox.VMID
	for _, name := range slices.Concat(names, jails) {
		if id, ok := sandbox.ParseVMID(name); ok {
			left = append(left, id)
		}
	}
	slices.Sort(left)
	return slices.Compact(left), nil
}

// Adopt takes over a VMM that an earlier daemon left, which has to be the very
// process that the handle is of, in the cgroup of that name. On error it is as
// it was.
func (j *Jailer) Adopt(id sandbox.VMID, text []byte) (*Process, error) {
	var h handle
	if err := json.Unmarshal(text, &h); err != nil {
		return nil, fmt.Errorf("handle of VMM: %w", err)
	}
	name := string(id)
	if root := filepath.Join(j.cfg.Dir, j.rootDir(name)); h.Jail.Root != root {
		return nil, fmt.Errorf("the VMM's root directory is %s, and %s with this configuration", h.Jail.Root, root)
	}
	if h.Jail.PID != h.Process.PID || h.Jail.UID < firstFree {
		return nil, errors.New("the handle contradicts itself")
	}
	held, err := process.Find(h.Process)
	if err != nil {
		return nil, fmt.Errorf("VMM: %w", err)
	}
	if err := j.cgroups.holds(name, h.Process.PID); err != nil {
		return nil, errors.Join(err, held.Close())
	}
	console, err := openConsole(h)
	if err != nil {
		return nil, errors.Join(err, held.Close())
	}
	p := &Process{jailer: j, spec: Spec{ID: id, FileMiB: h.FileMiB}, jail: h.Jail}
	p.watch(held, console)
	p.undo.Add(FaultUser, func(context.Context) error { return j.giveBack(h.Jail.UID, name) })
	p.undo.Add(FaultCgroup, func(ctx context.Context) error { return j.cgroups.kill(ctx, name) })
	p.undo.Add(FaultRoot, func(context.Context) error { return j.removeRoot(name) })
	p.undo.Add(FaultStart, p.end)
	return p, nil
}

// openConsole opens the reading end of a VMM's console. The VMM may have put
// anything else in its place, and nothing else is opened.
func openConsole(h handle) (*os.File, error) {
	path := consolePath(h.Process.PID)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	var st unix.Stat_t
	if err := unix.Stat(self, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO || (process.File{Dev: st.Dev, Ino: st.Ino}) != h.Console {
		return nil, errors.New("the VMM's console is not the one that it was given")
	}
	return os.OpenFile(self, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// Remove ends what an earlier daemon left of a VMM and was not adopted, and
// clears it. That there is nothing is no error. Its user id is handed out again
// by the next daemon.
func (j *Jailer) Remove(ctx context.Context, id sandbox.VMID) error {
	name := string(id)
	if err := j.cgroups.kill(ctx, name); err != nil {
		return err
	}
	return j.removeRoot(name)
}
