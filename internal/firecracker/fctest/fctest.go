// Package fctest is a fake firecracker executable, for tests of everything
// above it that need neither root nor KVM.
//
// The fake speaks Firecracker's API socket and hybrid vsock as the real one
// does, refuses what the real one refuses, and has the real guest agent behind
// it, which runs programs on the host. It is the test binary itself, started
// again: a test's TestMain calls [Main] first, and a [Launcher] starts it.
//
// It proves nothing about virtual machines. Claims about those have their tests
// in test/real.
package fctest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/tail"
)

// modeEnv tells a test binary that it is to be firecracker, and of which kind.
const modeEnv = "EMBERD_FAKE_FIRECRACKER"

// Mode is how a fake behaves.
type Mode string

// The modes.
const (
	// Sound boots a guest whose agent answers.
	Sound Mode = "sound"
	// Silent boots a guest in which nothing ever listens.
	Silent Mode = "silent"
	// Mute boots a guest that accepts a connection and never says hello.
	Mute Mode = "mute"
	// Stillborn exits when it is told to boot, or to load a snapshot.
	Stillborn Mode = "stillborn"
	// Deaf never opens its API socket.
	Deaf Mode = "deaf"
	// Refusing answers every API call with a fault.
	Refusing Mode = "refusing"
)

// Main makes this process the fake, if a [Launcher] started it, and does not
// return then.
func Main() {
	if mode := Mode(os.Getenv(modeEnv)); mode != "" {
		os.Exit(run(mode, os.Args[1:]))
	}
}

// Launcher starts fakes, in directories of their own below Dir. It is a
// [firecracker.Launcher].
type Launcher struct {
	Dir string
	// OOM says that fakes which end were ended by the host's OOM killer.
	OOM atomic.Bool

	mu    sync.Mutex
	modes []Mode
	alive map[int]bool
}

// Next sets the modes of the VMMs to be launched next, in order; those after
// them are Sound.
func (l *Launcher) Next(modes ...Mode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.modes = modes
}

// Running are the process ids of the fakes that were not collected yet.
func (l *Launcher) Running() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	var pids []int
	for pid := range l.alive {
		pids = append(pids, pid)
	}
	return pids
}

func (l *Launcher) nextMode() Mode {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.modes) == 0 {
		return Sound
	}
	m := l.modes[0]
	l.modes = l.modes[1:]
	return m
}

// Launch starts a fake.
func (l *Launcher) Launch(ctx context.Context, spec firecracker.LaunchSpec) (_ firecracker.Process, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Unwind(ctx))
		}
	}()
	root := filepath.Join(l.Dir, string(spec.ID))
	if err := os.Mkdir(root, 0o700); err != nil {
		return nil, err
	}
	undo.Add("root", func(context.Context) error { return os.RemoveAll(root) })
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &fake{root: root, oom: &l.OOM, done: make(chan struct{})}
	p.console.Size = 64 << 10
	cmd := exec.Command(self, spec.Args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), modeEnv+"="+string(l.nextMode()))
	cmd.Stdout, cmd.Stderr = &p.console, &p.console
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.pid = cmd.Process.Pid
	l.set(p.pid, true)
	go func() {
		defer close(p.done)
		_ = cmd.Wait()
		// What the guest agent started ends with its "VM".
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		l.set(p.pid, false)
	}()
	undo.Add("process", p.end)
	p.undo, undo = undo, cleanup.Stack{}
	return p, nil
}

func (l *Launcher) set(pid int, alive bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alive == nil {
		l.alive = make(map[int]bool)
	}
	if alive {
		l.alive[pid] = true
	} else {
		delete(l.alive, pid)
	}
}

// fake is one that was started.
type fake struct {
	root    string
	pid     int
	console tail.Buffer
	oom     *atomic.Bool // nil if it was adopted
	done    chan struct{}

	mu   sync.Mutex
	undo cleanup.Stack
}

func (p *fake) Dial(ctx context.Context, name string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(p.root, name))
}

// Equip links files into the fake's directory.
func (p *fake) Equip(_ sandbox.Size, files map[string]string) error {
	for name, source := range files {
		if err := os.Link(source, filepath.Join(p.root, name)); err != nil {
			return err
		}
	}
	return nil
}

// Take ends the fake and moves files that it has made.
func (p *fake) Take(ctx context.Context, files map[string]string) error {
	if err := p.end(ctx); err != nil {
		return err
	}
	for name, to := range files {
		if err := errors.Join(os.Rename(filepath.Join(p.root, name), to), os.Chmod(to, 0o444)); err != nil {
			return err
		}
	}
	return nil
}

// A fake is not confined, and claims nothing else.
func (p *fake) CheckConfined() error { return nil }
func (p *fake) Jail() sandbox.Jail {
	return sandbox.Jail{
		UID: os.Getuid(), GID: os.Getgid(), Root: p.root, PID: p.pid, ConsoleBytes: p.console.Size,
		Namespaces: []string{}, BoundingSet: []string{}, Command: []string{},
		CgroupLimits: map[string]string{}, Rlimits: map[string]uint64{},
	}
}

func (p *fake) Done() <-chan struct{} { return p.done }
func (p *fake) OOMKilled() bool       { return p.oom != nil && p.oom.Load() }
func (p *fake) Console() string       { return p.console.String() }

func (p *fake) Kill(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.undo.Unwind(ctx)
}

func (p *fake) end(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	default:
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fake firecracker %d does not end: %w", p.pid, ctx.Err())
	}
}
