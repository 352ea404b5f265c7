package jail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/process"
	"github.com/emberd/emberd/internal/x/tail"
)

// consoleTail is how much of a VMM's console is kept, in bytes.
const consoleTail = 64 << 10

// Process is a VMM in its jail.
type Process struct {
	jailer *Jailer
	spec   Spec
	pid    int
	held   *process.Handle
	// child is the process that this one has to wait for, nil if the VMM was
	// adopted.
	child   *exec.Cmd
	console tail.Buffer
	output  *os.File // the console as it comes
	// watching is who waits for the VMM's end. done is closed when it came.
	watching sync.WaitGroup
	done     chan struct{}
	// oomKilled is set before done is closed.
	oomKilled bool

	// view guards what changes of jail: its files and its limits.
	view sync.Mutex
	jail sandbox.Jail

	mu   sync.Mutex
	undo cleanup.Stack
}

// spawn starts the jailer, which becomes Firecracker: it does not fork, so the
// child that is waited for is the VMM itself.
func (j *Jailer) spawn(ctx context.Context, spec Spec, plan sandbox.Jail) (*Process, error) {
	cgroup, err := os.Open(j.cgroups.path(string(spec.ID)))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer func() { _ = cgroup.Close() }()

	console, sink, err := consolePipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(plan.Command[0], plan.Command[1:]...)
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = sink, sink
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// The jailer adds a mount namespace. The network namespace holds a
		// loopback that is down, has no name, and ends with the process.
		Cloneflags:  unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
		// Out of reach of a Ctrl-C in the daemon's terminal.
		Setsid: true,
	}
	err = startReduced(cmd)
	_ = sink.Close() // or the console would never end
	if err != nil {
		return nil, errors.Join(fmt.Errorf("jailer: %w", err), console.Close())
	}
	plan.PID = cmd.Process.Pid
	// The process cannot have been waited for yet, so the id is its own.
	held, err := process.Open(plan.PID)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait(), console.Close())
	}
	p := &Process{jailer: j, spec: spec, jail: plan, child: cmd}
	p.watch(held, console)
	// The jailer knows no option for this one.
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_CORE, &unix.Rlimit{Cur: maxCoreSize, Max: maxCoreSize}, nil); err != nil {
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("limit core dumps: %w", err), p.end(ctx))
	}
	return p, nil
}

// watch waits for the end of the VMM, and reads its console until then.
func (p *Process) watch(held *process.Handle, console *os.File) {
	p.pid, p.held, p.output = p.jail.PID, held, console
	p.console.Size = p.jail.ConsoleBytes
	p.done = make(chan struct{})
	p.watching.Go(func() {
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(&p.console, console) })
		err := held.Wait()
		// The console ends with the VMM, which alone can write to it, or was closed.
		reading.Wait()
		if err != nil {
			return // it is not watched any more
		}
		if p.child != nil {
			_ = p.child.Wait() // how a VMM ended makes no difference to what follows
		}
		p.oomKilled = p.jailer.cgroups.oomKilled(string(p.spec.ID))
		_, _ = console.Close(), held.Close()
		close(p.done)
	})
}

// consolePipe returns the two ends of a VMM's console. It is a pipe, so that
// nothing a guest writes takes up room on a disk. The end for the VMM is a
// reader as well: so the pipe has one when the daemon is gone, and Firecracker,
// which drops what a full pipe does not take, goes on. Without a reader it would
// be sent SIGPIPE, whose handler logs to the same console and hangs in it.
func consolePipe() (console, sink *os.File, err error) {
	console, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("console: %w", err)
	}
	defer func() { _ = w.Close() }()
	sink, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), os.O_RDWR, 0)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("console: %w", err), console.Close())
	}
	return console, sink, nil
}

// end kills the process and waits until it is gone.
func (p *Process) end(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	err := p.held.Kill()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		if err != nil {
			return fmt.Errorf("VMM (pid %d): %w", p.PID(), err)
		}
		return fmt.Errorf("VMM (pid %d) does not end: %w", p.PID(), context.Cause(ctx))
	}
}

// Jail is what confines the VMM.
func (p *Process) Jail() sandbox.Jail {
	p.view.Lock()
	defer p.view.Unlock()
	return p.jail
}

// Equip places files in the root directory, hard links of what they name on the
// host, and sets the limits to those of a VM of that size.
func (p *Process) Equip(size sandbox.Size, files map[string]string) error {
	p.mu.Lock() // not while it is cleared
	defer p.mu.Unlock()
	j, name := p.jailer, string(p.spec.ID)
	plan, err := j.equipped(p.Jail(), p.spec, size, files)
	if err != nil {
		return err
	}
	if err := errors.Join(j.cfg.Faults.Hit(FaultPlace), j.place(name, plan.Files)); err != nil {
		return err
	}
	if err := errors.Join(j.cfg.Faults.Hit(FaultLimit), j.cgroups.limit(name, plan.CgroupLimits)); err != nil {
		return err
	}
	p.view.Lock()
	defer p.view.Unlock()
	p.jail.Files, p.jail.CgroupLimits = plan.Files, plan.CgroupLimits
	return nil
}

// Take ends the VMM and moves files that it has made, name to new path on the
// host, where VMs may share them. The path is on the filesystem of the jails.
func (p *Process) Take(ctx context.Context, files map[string]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.end(ctx); err != nil {
		return err
	}
	for name, to := range files {
		if err := p.jailer.take(string(p.spec.ID), name, to, p.jail.UID); err != nil {
			return fmt.Errorf("take %s: %w", name, err)
		}
	}
	return nil
}

// CheckConfined returns an error unless every thread of the VMM is confined as
// it has to be while a guest runs. Before that, Firecracker has not yet put up
// its seccomp filters.
func (p *Process) CheckConfined() error {
	return checkThreads(fmt.Sprintf("/proc/%d", p.PID()), p.jail.UID)
}

// Dial connects to a socket that the VMM made in its root directory. The VMM
// may put anything else there, a link to another socket of the host's for
// instance; that is refused.
func (p *Process) Dial(ctx context.Context, name string) (net.Conn, error) {
	path := filepath.Join(p.jail.Root, name)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != p.jail.UID {
		return nil, fmt.Errorf("%s is not a socket of the VMM's own", path)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// PID is the VMM's process id on the host.
func (p *Process) PID() int { return p.pid }

// Done is closed when the VMM has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// OOMKilled tells of a VMM that has ended whether the kernel's OOM killer did
// it, because the host or the VMM's cgroup had no memory left.
func (p *Process) OOMKilled() bool {
	select {
	case <-p.done:
		return p.oomKilled
	default:
		return false
	}
}

// Console is the tail of what guest and VMM wrote to their console.
func (p *Process) Console() string { return p.console.String() }

// Leave lets go of the VMM, which goes on and can be adopted by the next daemon.
// Nobody may use the process any more.
func (p *Process) Leave() {
	_, _ = p.held.Close(), p.output.Close()
	p.watching.Wait()
}

// Kill ends the VMM and removes its cgroup, its root directory and its hold on
// its user id. It may be called again: a second call waits for the first and
// tries again what that could not do.
func (p *Process) Kill(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.undo.Unwind(ctx)
}
