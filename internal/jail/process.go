package jail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/tail"
)

// consoleTail is how much of a VMM's console is kept, in bytes.
const consoleTail = 64 << 10

// Process is a VMM in its jail.
type Process struct {
	root    string
	process *os.Process
	console tail.Buffer
	done    chan struct{}

	mu   sync.Mutex
	undo cleanup.Stack
}

// spawn starts the jailer, which becomes Firecracker: it does not fork, so the
// child that is waited for is the VMM itself.
func (j *Jailer) spawn(name string, user int, args []string) (*Process, error) {
	cgroup, err := os.Open(j.cgroups.path(name))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer func() { _ = cgroup.Close() }()

	p := &Process{root: j.rootDir(name), done: make(chan struct{})}
	p.console.Size = consoleTail
	id := strconv.Itoa(user)
	cmd := exec.Command(j.cfg.Jailer, append([]string{
		"--id", name, "--exec-file", j.cfg.Firecracker, "--uid", id, "--gid", id,
		"--chroot-base-dir", j.cfg.Dir, "--",
	}, args...)...)
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = &p.console, &p.console
	// A VMM is killed as a whole; nothing else can hold its console open.
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// The jailer adds a mount namespace. The network namespace holds a
		// loopback that is down, has no name, and ends with the process.
		Cloneflags:  unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
		// Out of reach of a Ctrl-C in the daemon's terminal.
		Setsid: true,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("jailer: %w", err)
	}
	p.process = cmd.Process
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how a VMM ended makes no difference to what follows
	}()
	return p, nil
}

// end kills the process and waits until it is gone.
func (p *Process) end(ctx context.Context) error {
	if err := p.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("VMM (pid %d): %w", p.PID(), err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("VMM (pid %d) does not end: %w", p.PID(), context.Cause(ctx))
	}
}

// Path is where a file in the VMM's root directory is found on the host.
func (p *Process) Path(name string) string { return filepath.Join(p.root, name) }

// PID is the VMM's process id on the host.
func (p *Process) PID() int { return p.process.Pid }

// Done is closed when the VMM has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Console is the tail of what guest and VMM wrote to their console.
func (p *Process) Console() string { return p.console.String() }

// Kill ends the VMM and removes its cgroup, its root directory and its hold on
// its user id. It may be called again: a second call waits for the first and
// tries again what that could not do.
func (p *Process) Kill(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.undo.Unwind(ctx)
}
