// Package proc runs one program with its standard streams, a time limit and a
// handle on the whole tree of processes it starts.
//
// Each run has its own control group, which the program is in from its first
// instruction: a limit that is reached, or a caller that goes away, ends every
// process of the tree, whatever sessions and process groups it made. Where
// there is no cgroup v2, which is only so in tests, the program's process group
// has to do. Output flows into the caller's writers and nowhere else: a slow
// writer blocks the program. The package knows nothing of frames or streams.
package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/guest/reaper"
)

// headStart is how long a program runs before its output is read, which the
// pipes hold until then. One that ends sooner is not held up by its reader.
const headStart = 20 * time.Millisecond

// linger is how long output is read after the program has ended while a
// background process still holds the pipe.
const linger = 250 * time.Millisecond

// MaxArg is the longest argument execve takes, MAX_ARG_STRLEN without its NUL.
const MaxArg = 128<<10 - 1

// Command is a program to run.
type Command struct {
	// Argv is the program, looked up in PATH unless it holds a slash, and its
	// arguments.
	Argv []string
	// Env is added to the default environment.
	Env []string
	// Dir is the working directory; empty means root's home.
	Dir string
	// Timeout is a wall-clock limit; zero means none. [Runner.Start] does not see
	// to it.
	Timeout time.Duration
	// Files are the program's descriptors from 3 on; nil is none.
	Files []*os.File

	script []byte // handed over as file descriptor 3
}

// Interpreter is a program that runs code.
type Interpreter struct {
	// Path is looked up in PATH unless it holds a slash.
	Path string
	// CodeFlag precedes code among the arguments; empty means -c. FileFlag, if it
	// is not empty, precedes the name of a file.
	CodeFlag, FileFlag string
}

// Script is code for an interpreter: as an argument, or as a file when it is too
// long to be one.
func Script(in Interpreter, code []byte) Command {
	if len(code) <= MaxArg {
		return Command{Argv: []string{in.Path, cmp.Or(in.CodeFlag, "-c"), string(code)}}
	}
	argv := []string{in.Path}
	if in.FileFlag != "" {
		argv = append(argv, in.FileFlag)
	}
	return Command{Argv: append(argv, "/proc/self/fd/3"), script: code}
}

// Stdio is where a program's input comes from and its output goes. Run closes
// Stdin when the program has ended.
type Stdio struct {
	Stdin          io.ReadCloser
	Stdout, Stderr io.Writer
	// Ended, if set, is called when the program has ended and the rest of its
	// output, which comes next, is at most a few KiB.
	Ended func()
}

// Result is how a program ended.
type Result struct {
	// Code is the exit status, or 128+Signal.
	Code int
	// Signal is what ended the program, zero if it exited.
	Signal int
	// TimedOut is set when the program was killed at its limit.
	TimedOut bool
	Duration time.Duration
	// Hit is what the program, or one that it started, ran into until it ended.
	Hit Hit
}

// StartError says why a program could not be started.
type StartError struct {
	Name string
	Err  error
	// Hit is the limit that was in the way, if that is the reason.
	Hit Hit
}

// Error names the program and the reason.
func (e *StartError) Error() string { return fmt.Sprintf("start %q: %v", e.Name, e.Err) }

// Unwrap returns the reason.
func (e *StartError) Unwrap() error { return e.Err }

// errTooMany is what the kernel's "try again" means where a program is started.
var errTooMany = errors.New("there are as many processes already as the limit pids allows")

// Runner runs programs. Any number of goroutines may use it.
type Runner struct {
	reaper  *reaper.Reaper
	groups  *groups
	orphans orphans
}

// New returns a runner whose programs are started by r and have their control
// groups under cgroupRoot; an empty cgroupRoot means that there is no cgroup v2.
func New(r *reaper.Reaper, cgroupRoot string) *Runner {
	runner := &Runner{reaper: r}
	if cgroupRoot != "" {
		runner.groups = &groups{root: cgroupRoot}
	}
	return runner
}

// Close stops discarding the output of background processes, which go on
// without a reader.
func (r *Runner) Close() { r.orphans.close() }

// Run starts cmd and attends it to its end. The error is a [*StartError] when
// the program never ran.
func (r *Runner) Run(ctx context.Context, cmd Command, stdio Stdio) (Result, error) {
	p, err := r.Start(cmd)
	if err != nil {
		_ = stdio.Stdin.Close()
		return Result{}, err
	}
	defer p.Abandon()
	return r.Attend(ctx, p, cmd.Timeout, stdio)
}

// Attend moves the program's input and output until it has ended, or timeout is
// over, if it is not zero. The error is ctx's cause when ctx ended first; the
// whole tree is dead then.
//
// Attend returns when the program has ended and all that it wrote has been
// handed over. Processes that it left in the background live on; their output
// is read a moment longer. The caller abandons p once it has told of the end, for
// which somebody waits.
func (r *Runner) Attend(ctx context.Context, p *Process, timeout time.Duration, stdio Stdio) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var in, out sync.WaitGroup
	in.Go(func() { feed(p.stdin, stdio.Stdin) })
	read := sync.OnceFunc(func() {
		out.Go(func() { p.stdout.copyTo(stdio.Stdout, cancel) })
		out.Go(func() { p.stderr.copyTo(stdio.Stderr, cancel) })
	})
	begin := time.AfterFunc(headStart, read)

	killed := p.wait(ctx, timeout)
	duration := time.Since(p.began)
	if begin.Stop() && stdio.Ended != nil && p.littleLeft() {
		stdio.Ended()
	}
	read()

	// A write to a pipe and a read from the caller may both be blocked: closing
	// is what ends them.
	_ = p.stdin.Close()
	_ = stdio.Stdin.Close()
	in.Wait()
	p.stdout.lingerFor(linger)
	p.stderr.lingerFor(linger)
	out.Wait()
	hit := p.group.hit()

	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	res := result(p.child.Status(), killed)
	res.Duration, res.Hit = duration, hit
	return res, nil
}

func result(status syscall.WaitStatus, killed bool) Result {
	if status.Exited() {
		return Result{Code: status.ExitStatus()}
	}
	sig := int(status.Signal())
	return Result{
		Code:     128 + sig,
		Signal:   sig,
		TimedOut: killed && status.Signal() == syscall.SIGKILL,
	}
}

// Process is a program that has been started.
type Process struct {
	*Slot

	child *reaper.Child
	began time.Time
}

// Child is the process itself.
func (p *Process) Child() *reaper.Child { return p.child }

// Begin sets the moment from which the program's time counts.
func (p *Process) Begin() { p.began = time.Now() }

// Kill ends the program and all that it started.
func (p *Process) Kill() { p.group.kill(p.child) }

// Signal sends sig to the program and the rest of its process group, or, if it
// is SIGKILL, to all that the program started. It tells whether the program was
// there to get it.
func (p *Process) Signal(sig syscall.Signal) bool {
	select {
	case <-p.child.Done():
		return false
	default:
	}
	if sig == syscall.SIGKILL {
		p.Kill()
		return true
	}
	return syscall.Kill(-p.child.Pid(), sig) == nil
}

// wait waits for the program's end and hastens it when the limit is reached or
// ctx ends. It tells whether the limit was reached.
func (p *Process) wait(ctx context.Context, timeout time.Duration) (timedOut bool) {
	var limit <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		limit = t.C
	}
	select {
	case <-p.child.Done():
		return false
	case <-limit:
		timedOut = true
	case <-ctx.Done():
	}
	p.Kill()
	<-p.child.Done()
	return timedOut
}

// littleLeft tells whether there is only a little output to be read.
func (p *Process) littleLeft() bool {
	const little = 8 << 10
	out, err := p.stdout.buffered()
	if err != nil {
		return false
	}
	errs, err := p.stderr.buffered()
	return err == nil && out+errs <= little
}

// Start starts cmd in a slot of its own. The error is a [*StartError].
func (r *Runner) Start(cmd Command) (*Process, error) {
	p, err := r.start(cmd)
	if err != nil {
		hit := Hit{Memory: errors.Is(err, unix.ENOMEM), PIDs: errors.Is(err, errTooMany)}
		return nil, &StartError{Name: cmd.Argv[0], Err: err, Hit: hit}
	}
	return p, nil
}

func (r *Runner) start(cmd Command) (_ *Process, err error) {
	path, err := exec.LookPath(cmd.Argv[0])
	if err != nil {
		return nil, reason(err)
	}
	slot, err := r.NewSlot()
	if err != nil {
		return nil, err
	}
	defer slot.CloseFiles()
	files := slot.Files()
	if cmd.script != nil {
		script, err := scriptFile(cmd.script)
		if err != nil {
			slot.Discard()
			return nil, err
		}
		defer func() { _ = script.Close() }()
		files = append(files, script)
	}
	attr := &os.ProcAttr{
		Dir:   workingDir(cmd.Dir),
		Env:   append(DefaultEnv(), cmd.Env...),
		Files: append(files, cmd.Files...),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	slot.group.enter(attr.Sys)
	began := time.Now()
	child, err := r.reaper.Start(path, cmd.Argv, attr)
	if err != nil {
		slot.Discard()
		if errors.Is(err, unix.EAGAIN) {
			err = errTooMany
		}
		return nil, reason(err)
	}
	return &Process{Slot: slot, child: child, began: began}, nil
}

// DefaultEnv is the environment of every program.
func DefaultEnv() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"USER=root",
		"LANG=C.UTF-8",
	}
}

func workingDir(dir string) string {
	const home = "/root"
	switch {
	case dir != "":
		return dir
	case unix.Access(home, unix.X_OK) == nil:
		return home
	}
	return "/"
}

// reason strips the call and the path that the os packages put before an error:
// the program's name is said once, by [StartError].
func reason(err error) error {
	if e, ok := errors.AsType[*exec.Error](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}
