// Package command runs the external programs that emberd uses to build things,
// and turns their failure into an error that says what the program said.
package command

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// tailLen is how much of a failed program's output its error carries, in bytes.
const tailLen = 2000

// Cmd is one program to run. Fill in what is needed and call Run.
type Cmd struct {
	Name string
	Args []string
	Dir  string
	// Env is added to the environment of this process.
	Env []string
}

// Run runs name with args and returns its standard output. The error carries
// the tail of its standard error.
func Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	return Cmd{Name: name, Args: args}.Run(ctx)
}

// Run runs the program and returns its standard output. When ctx ends, the
// program's whole process group is killed.
func (c Cmd) Run(ctx context.Context) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Name, c.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, &stdout, &stderr
	if c.Env != nil {
		cmd.Env = append(cmd.Environ(), c.Env...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %w%s", c.Name, err, tail(stderr.String()))
	}
	return stdout.Bytes(), nil
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	if len(s) > tailLen {
		s = "…" + s[len(s)-tailLen:]
	}
	return "\n" + s
}
