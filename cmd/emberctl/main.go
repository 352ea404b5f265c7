// Command emberctl talks to emberd, and sets up what emberd needs.
//
// The one idea: every command is a function that returns an error. What an
// error means for the terminal and for the exit status is decided in one place,
// [app.report], so that scripts can rely on it:
//
//	0    it worked
//	1    it did not
//	2    the command line makes no sense
//	124  run, exec: the program was stopped at its time limit
//	125  run, exec: emberd failed, so the program's own status is not known, or the
//	     program or its input could not be read
//	130  interrupted
//
// run and exec exit with the program's own status when it has one. Data goes to
// standard output; progress and errors never do.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/sandbox"
)

// The exit statuses that are not a program's own.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitTimedOut    = 124
	exitEmberd      = 125
	exitInterrupted = 130
	exitPipe        = 141
)

func main() {
	// A reader that goes away (emberctl run … | head) must not end emberctl
	// before it has deleted its sandbox: with a handler, writing to the pipe
	// returns EPIPE. Programs that emberctl starts are not affected.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), wanted(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)...)
	// The first signal asks, the second one ends the process at once.
	context.AfterFunc(ctx, stop)

	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// wanted returns the signals that this process was not started to ignore, as
// nohup does.
func wanted(signals ...os.Signal) []os.Signal {
	return slices.DeleteFunc(signals, signal.Ignored)
}

// exitError makes emberctl exit with code. What err says is printed, if there
// is an err.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is a command line that makes no sense.
func usageError(err error) error { return &exitError{exitUsage, err} }

// run executes the command line args and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRoot(a) //nolint:contextcheck // the commands get ctx from cobra, below
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		err = &exitError{exitInterrupted, interruption(ctx, err)}
	}
	return report(a.stderr, err, cmd.CommandPath())
}

// interruption returns what is left to say when ctx was cancelled by a signal:
// nothing, unless something else went wrong as well.
func interruption(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*exitError](err); ok {
		err = e.err
	}
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx)) {
		return errors.New("interrupted")
	}
	return err
}

// report tells the user about err and returns the exit status it stands for.
func report(w io.Writer, err error, command string) int {
	if errors.Is(err, syscall.EPIPE) {
		return exitPipe
	}
	code := exitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		code, err = e.code, e.err
	}
	if err == nil {
		return code
	}
	say(w, "emberctl: %v\n", err)
	if hint := hintFor(err, code, command); hint != "" {
		say(w, "hint: %s\n", hint)
	}
	return code
}

// hintFor returns what the user can do about err, or "".
func hintFor(err error, code int, command string) string {
	if errors.Is(err, client.ErrUnreachable) {
		return "start emberd, or on a host without KVM: emberctl machine start"
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.Code == string(sandbox.CodeUnknownPack) {
		return "emberctl info lists the packs that emberd has"
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.Code == string(sandbox.CodeTooLarge) {
		return "code and standard input travel in one request; bytes that are not text take a third more"
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.Code == string(sandbox.CodeUnauthorized) {
		return "put a key of emberctl key create into EMBERD_API_KEY, or use --addr unix://PATH for emberd's socket"
	}
	if e, ok := errors.AsType[*client.Error](err); ok && e.Code == string(sandbox.CodeNoEgress) {
		return "emberctl create --allow HOST makes a sandbox that has a network interface; emberctl info says whether emberd can"
	}
	if code == exitUsage {
		return command + " --help"
	}
	return ""
}
