package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/progress"
)

const programHelp = `
The program's standard output and standard error are passed on byte for byte
when it has ended; a warning follows when there was more than emberd keeps.
Unless standard input is a terminal, it is read to its end and given to the
program; code and input together may take 1 MiB. What the program wanted to reach
and may not is told behind its output, with the --allow that would let it.

Exit status:
  the program's own, or 128+n when signal n ended it; and
  2    the command line makes no sense
  124  the program was stopped at its time limit
  125  emberd failed, or the program could not be read: it did not run, or it is
       not known how it ended
  130  interrupted`

func newRunCmd(a *app) *cobra.Command {
	var src source
	var want wish
	cmd := &cobra.Command{
		Use:   "run [flags] CODE|-",
		Short: "Run a program in a sandbox of its own",
		Long: `Run creates a sandbox, runs CODE in it with the pack's interpreter and deletes
the sandbox, whatever happens. With - the code is read from standard input.

The sandbox has no network unless --allow or --egress says what it may reach.
` + allowHelp + `
` + programHelp,
		Example: `  emberctl run 'print(6*7)'
  emberctl run --pack shell 'uname -a; id'
  emberctl run --timeout 5s --file script.py
  emberctl run --memory 1024 --pids 64 --file script.py
  emberctl run --allow api.example.org --file script.py
  emberctl run 'import sys; print(len(sys.stdin.read()))' < README.md
  emberctl run - < script.py`,
		Args: func(_ *cobra.Command, args []string) error {
			if want.reach.file == "-" {
				return errors.New("standard input is the program's, so --egress takes a file")
			}
			return errors.Join(src.check(args), want.reach.check())
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			prog, err := src.program(cmd.Context(), a, args)
			if err != nil {
				return &exitError{exitEmberd, err}
			}
			return a.runOnce(cmd.Context(), want, prog)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	src.flags(cmd)
	want.flags(a, cmd)
	return cmd
}

func newExecCmd(a *app) *cobra.Command {
	var src source
	var detach bool
	var key string
	cmd := &cobra.Command{
		Use:   "exec [flags] ID CODE|-",
		Short: "Run a program in a sandbox",
		Long: `Exec runs CODE in the sandbox ID with the pack's interpreter. With - the code is
read from standard input. Each program is a process of its own; what it wrote to
files is there for the next one.

With --detach it prints the program's id as soon as the program runs, and does not
wait for its end; emberctl attach does. Interrupted, it leaves a program that has
begun to go on until its time limit; emberctl ps finds it.

With --idempotency-key it can be repeated when it is not known what became of it:
the program is started once, and the answer is the same, as long as what it wrote is
kept: an hour, and the youngest MiB of each stream.
` + programHelp,
		Example: `  id=$(emberctl create)
  emberctl exec $id 'print(6*7)'
  emberctl exec --timeout 500ms $id 'while True: pass'
  emberctl exec $id --file script.py < data.csv
  ex=$(emberctl exec --detach $id --file long.py) && emberctl attach $id $ex`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("which sandbox? give its ID")
			}
			return src.check(args[1:])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			prog, err := src.program(cmd.Context(), a, args[1:])
			if err != nil {
				return &exitError{exitEmberd, err}
			}
			prog.Key = key
			if detach {
				return a.start(cmd.Context(), args[0], prog)
			}
			show, stop := a.progress()
			defer stop()
			res, err := a.exec(cmd.Context(), show, args[0], prog)
			stop()
			if err != nil {
				return err
			}
			return a.finish(args[0], res)
		},
		ValidArgsFunction: a.completeIDs(1),
	}
	src.flags(cmd)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the program's id and do not wait for its end")
	cmd.Flags().StringVar(&key, "idempotency-key", "", "start the program once however often this is repeated with the same key and program")
	return cmd
}

// start starts a program and prints its id.
func (a *app) start(ctx context.Context, id string, prog client.Program) error {
	ex, err := a.client().StartExec(ctx, id, prog, false)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(rest.StartResponse{ExecID: ex})
	}
	_, err = fmt.Fprintln(a.stdout, ex)
	return err
}

// runOnce runs prog in a sandbox that it creates, and deletes that sandbox also
// when it is interrupted.
func (a *app) runOnce(ctx context.Context, want wish, prog client.Program) error {
	if err := want.settle(ctx, a); err != nil {
		return &exitError{exitEmberd, err}
	}
	show, stop := a.progress()
	defer stop()
	id, err := a.create(ctx, show, want)
	if err != nil {
		return &exitError{exitEmberd, err}
	}
	defer func() {
		clean, cancel := cleanup.Context(ctx)
		defer cancel()
		// A sandbox that is not found was lost with its microVM.
		if err := a.client().Delete(clean, id); err != nil && !isNotFound(err) {
			say(a.stderr, "emberctl: delete sandbox %s: %v\n", id, err)
		}
	}()
	res, err := a.exec(ctx, show, id, prog)
	stop()
	if err != nil {
		return err
	}
	return a.finish(id, res)
}

// create creates a sandbox. Interrupted, it takes until emberd has said that
// there is none; show tells why.
func (a *app) create(ctx context.Context, show progress.Func, want wish) (string, error) {
	show.Step("creating a sandbox")
	if want.key != "" {
		return a.client().CreateOnce(ctx, want.key, want.pack, want.options...)
	}
	defer context.AfterFunc(ctx, func() { show.Step("interrupted; undoing what was begun") })()
	return a.client().Create(ctx, want.pack, want.options...)
}

func (a *app) exec(ctx context.Context, show progress.Func, id string, prog client.Program) (client.Result, error) {
	show.Step("running")
	res, err := a.client().Exec(ctx, id, prog)
	if err != nil {
		return res, &exitError{exitEmberd, err}
	}
	return res, nil
}

// finish passes on what a program wrote, and its exit status as an error.
func (a *app) finish(id string, res client.Result) error {
	if err := a.printResult(id, res); err != nil {
		return err
	}
	saysMore := res.StdoutTruncated || res.StderrTruncated || res.Err != "" || len(res.LimitsHit)+len(res.EgressDenied) > 0
	if saysMore && !a.json && !endsLine(res.Stderr) {
		say(a.stderr, "\n")
	}
	a.warnTruncated(res)
	return a.end(res)
}

// end is how a program ended as an error, after a word about what was refused to it
// and a warning if it ran into a limit.
func (a *app) end(res client.Result) error {
	if !a.json {
		a.tellDenied(res.EgressDenied)
	}
	if len(res.LimitsHit) > 0 {
		say(a.stderr, "emberctl: warning: the program ran into a limit of the sandbox: %s\n", strings.Join(res.LimitsHit, ", "))
	}
	switch {
	case res.Err == client.TimedOut:
		return &exitError{exitTimedOut, errors.New(res.Err)}
	case res.Err != "":
		return &exitError{exitEmberd, errors.New(res.Err)}
	case res.ExitCode != 0:
		return &exitError{code: res.ExitCode}
	}
	return nil
}

func (a *app) printResult(id string, res client.Result) error {
	if !a.json {
		_, err := a.stdout.Write(res.Stdout)
		_, errStderr := a.stderr.Write(res.Stderr)
		return errors.Join(err, errStderr)
	}
	out := struct {
		ID string `json:"id"`
		rest.ExecResult
	}{id, rest.ExecResult{
		StdoutTruncated: res.StdoutTruncated,
		StderrTruncated: res.StderrTruncated,

		ExitCode:   res.ExitCode,
		DurationMS: res.Duration.Milliseconds(),
		DurationUS: res.Duration.Microseconds(),
		Start:      rest.StartName(res.Warm),
		LimitsHit:  res.LimitsHit,
		Error:      res.Err,
		ExecID:     res.ExecID,

		EgressDenied: res.EgressDenied,
	}}
	out.Stdout, out.StdoutBase64 = rest.EncodeOutput(res.Stdout)
	out.Stderr, out.StderrBase64 = rest.EncodeOutput(res.Stderr)
	return a.printJSON(out)
}

// endsLine reports whether what follows output begins a line.
func endsLine(output []byte) bool { return len(output) == 0 || output[len(output)-1] == '\n' }

// warnTruncated says which output is not all that the program wrote.
func (a *app) warnTruncated(res client.Result) {
	for _, s := range []struct {
		name      string
		truncated bool
		kept      int
	}{
		{"output", res.StdoutTruncated, len(res.Stdout)},
		{"error", res.StderrTruncated, len(res.Stderr)},
	} {
		if s.truncated {
			say(a.stderr, "emberctl: warning: standard %s is incomplete: emberd kept its first %d bytes\n", s.name, s.kept)
		}
	}
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Status == http.StatusNotFound
}

// source is where a program comes from, and how long it may take.
type source struct {
	file    string
	timeout time.Duration
}

func (s *source) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.file, "file", "f", "", "read the code from this file")
	cmd.Flags().DurationVarP(&s.timeout, "timeout", "t", 0, "kill the program after this time, such as 500ms or 1m (default: the sandbox's exec timeout)")
}

// check complains about a command line without exactly one program.
func (s *source) check(args []string) error {
	switch {
	case s.timeout < 0:
		return errors.New("--timeout must not be negative")
	case len(args) == 0 && s.file == "":
		return errors.New("what to run? give CODE, - or --file")
	case len(args) == 1 && s.file != "":
		return errors.New("give CODE or --file, not both")
	case len(args) > 1:
		return fmt.Errorf("CODE is one argument, so quote it; unexpected %q", args[1])
	}
	return nil
}
