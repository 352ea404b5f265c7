package machine

import (
	"context"
	"crypto/rand"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/x/cleanup"
)

// execDir is where copied programs are put in the machine. It is memory there.
const execDir = "/run/emberd-exec"

// Program is a program to run in the machine as root.
type Program struct {
	// Path is a static executable of this host, which is copied into the machine
	// and removed again afterwards; or, with Inside, one of the machine's own.
	Path   string
	Inside bool
	Args   []string
	// Env is added to the machine's environment, as NAME=VALUE.
	Env []string
}

// Exec runs a program in the machine. When ctx ends the program and everything
// it started is killed. An error means that it is not known how the program
// ended.
func (m Machine) Exec(ctx context.Context, p Program, stdio agent.Stdio) (agent.Exit, error) {
	status, err := m.Status()
	if err != nil {
		return agent.Exit{}, err
	}
	if status.State != Running {
		return agent.Exit{}, &downError{status}
	}
	exit, err := m.exec(ctx, p, stdio)
	if err == nil || ctx.Err() != nil {
		return exit, err
	}
	// What broke is usually the machine, and its supervisor knows why. It writes
	// that down at most a moment after the connection broke.
	wait, cancel := context.WithTimeout(ctx, endGrace+time.Second)
	defer cancel()
	if status := m.awaitDown(wait); status.State != Running {
		err = fmt.Errorf("%w (%w)", &downError{status}, err)
	}
	return agent.Exit{}, err
}

func (m Machine) exec(ctx context.Context, p Program, stdio agent.Stdio) (agent.Exit, error) {
	if !p.Inside {
		if err := checkStatic(p.Path); err != nil {
			return agent.Exit{}, err
		}
	}
	cmd := agent.Command{Argv: append([]string{p.Path}, p.Args...), Env: p.Env}
	if !p.Inside {
		cmd.Argv[0] = path.Join(execDir, rand.Text()+"-"+filepath.Base(p.Path))
		defer m.remove(ctx, cmd.Argv[0])
		if err := m.copyIn(ctx, p.Path, cmd.Argv[0]); err != nil {
			return agent.Exit{}, fmt.Errorf("copy %s into machine %s: %w", p.Path, m.Name, err)
		}
	}
	stream, err := m.dial(ctx)
	if err != nil {
		return agent.Exit{}, err
	}
	exit, err := agent.Exec(ctx, stream, cmd, stdio)
	if err != nil {
		return agent.Exit{}, fmt.Errorf("run %s in machine %s: %w", p.Path, m.Name, err)
	}
	return exit, nil
}

// checkStatic refuses what the machine cannot run: it has no libraries and no
// shell, and would say no more than "no such file or directory".
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		if _, ok := errors.AsType[*elf.FormatError](err); ok || errors.Is(err, io.EOF) {
			return fmt.Errorf("%s is not an ELF executable, and the machine has no interpreters", path)
		}
		return err
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s needs shared libraries, and the machine has none: link it statically (in Go, CGO_ENABLED=0)", path)
		}
	}
	return nil
}

func (m Machine) copyIn(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	stream, err := m.dial(ctx)
	if err != nil {
		return err
	}
	return agent.WriteFile(ctx, stream, to, 0o755, f)
}

// remove removes a copied program, as well as that goes: what stays is gone
// when the machine stops.
func (m Machine) remove(ctx context.Context, file string) {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	stream, err := m.dial(ctx)
	if err != nil {
		return
	}
	_, _ = agent.Exec(ctx, stream, agent.Command{Argv: []string{guestInit, "remove", file}}, agent.Stdio{})
}

// dial opens a stream to the machine's PID 1.
func (m Machine) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", m.agentSocket())
	if err != nil {
		return nil, fmt.Errorf("connect to machine %s: %w", m.Name, err)
	}
	return conn, nil
}

// awaitDown returns the status as soon as the machine is no longer running, or
// when ctx ends.
func (m Machine) awaitDown(ctx context.Context) Status {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := m.Status()
		if err == nil && status.State != Running {
			return status
		}
		select {
		case <-ctx.Done():
			return status
		case <-tick.C:
		}
	}
}

// downError says that a machine is not up, and why. It is [ErrNotRunning].
type downError struct{ status Status }

func (e *downError) Error() string {
	switch {
	case e.status.State == Stopped:
		return fmt.Sprintf("machine %s is not running (start it with emberctl machine start)", e.status.Name)
	case e.status.Reason == "":
		return fmt.Sprintf("machine %s is %s", e.status.Name, e.status.State)
	}
	return fmt.Sprintf("machine %s is %s: %s", e.status.Name, e.status.State, e.status.Reason)
}

func (e *downError) Is(target error) bool { return target == ErrNotRunning }
