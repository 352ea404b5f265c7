package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

// reattach is how long attach waits for a daemon that does not answer.
const reattach = 2 * time.Minute

func newPsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ps ID",
		Short: "List the programs of a sandbox",
		Long: `Ps lists the programs that run in the sandbox ID, and those that ended and that
it remembers: 64 of them for an hour. OUT and ERR are how much they wrote.`,
		Example: `  emberctl ps $id
  emberctl ps $id --json | jq -r '.execs[] | select(.state == "running").exec_id'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := a.client().Execs(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(rest.ExecList{Execs: list})
			}
			rows := [][]string{{"EXEC", "STATE", "EXIT", "AGE", "OUT", "ERR"}}
			for _, ex := range list {
				rows = append(rows, []string{
					ex.ExecID, ex.State, exitOf(ex), age(max(0, time.Since(ex.StartedAt))),
					strconv.FormatInt(ex.Stdout.EndOffset, 10), strconv.FormatInt(ex.Stderr.EndOffset, 10),
				})
			}
			return a.printTable(rows)
		},
		ValidArgsFunction: a.completeIDs(1),
	}
}

// exitOf says how a program ended.
func exitOf(ex rest.Exec) string {
	switch {
	case ex.Error != "":
		return ex.Error
	case ex.ExitCode != nil:
		return strconv.Itoa(*ex.ExitCode)
	}
	return "-"
}

func newKillCmd(a *app) *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:   "kill ID EX...",
		Short: "Send a signal to programs",
		Long: `Kill sends a signal to programs that run in the sandbox ID: HUP, INT, QUIT, USR1,
USR2, TERM, CONT and STOP to a program's process group, as a terminal would, and
KILL to everything that it started.`,
		Example: `  emberctl kill $id $ex
  emberctl kill --signal KILL $id $ex`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := strings.TrimPrefix(strings.ToUpper(signal), "SIG")
			var errs []error
			for _, ex := range args[1:] {
				if err := a.client().Signal(cmd.Context(), args[0], ex, name); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", ex, err))
				}
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: a.completeExecs(0),
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "TERM", "the signal to send")
	_ = cmd.RegisterFlagCompletionFunc("signal", cobra.FixedCompletions(
		[]cobra.Completion{"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func newAttachCmd(a *app) *cobra.Command {
	at := &attachment{}
	cmd := &cobra.Command{
		Use:   "attach ID EX",
		Short: "Follow a program to its end",
		Long: `Attach prints what the program EX of the sandbox ID has written and writes, up to
its end, and exits with the program's status. When the connection breaks, or the
daemon is restarted, it goes on where it was, without a byte missing or twice; it
waits up to 2 minutes for a daemon that does not answer. Of each stream the youngest
MiB is kept; a warning tells of bytes that are gone. With --json it prints nothing
but how the program ended.

Interrupted, it leaves the program alone and says how to attach again.

Exit status:
  the program's own, or 128+n when signal n ended it; and
  2    the command line makes no sense
  124  the program was stopped at its time limit
  125  emberd failed: it is not known how the program ended
  130  interrupted; the program goes on`,
		Example: `  ex=$(emberctl exec --detach $id --file long.py)
  emberctl attach $id $ex
  emberctl attach --stdout-from 4096 $id $ex`,
		Args: func(_ *cobra.Command, args []string) error {
			if at.stdout < 0 || at.stderr < 0 {
				return errors.New("a position must not be negative")
			}
			if len(args) != 2 {
				return errors.New("which program? give the sandbox's ID and the program's, which emberctl ps ID lists")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			at.id, at.ex = args[0], args[1]
			return a.attach(cmd.Context(), at)
		},
		ValidArgsFunction: a.completeExecs(2),
	}
	cmd.Flags().Int64Var(&at.stdout, "stdout-from", 0, "begin at this byte of standard output")
	cmd.Flags().Int64Var(&at.stderr, "stderr-from", 0, "begin at this byte of standard error")
	return cmd
}

// attachment is a program that is followed, and how far that has come.
type attachment struct {
	id, ex         string
	stdout, stderr int64
}

// attach follows a program to its end.
func (a *app) attach(ctx context.Context, at *attachment) error {
	stdout, stderr := a.stdout, a.stderr
	if a.json {
		stdout, stderr = io.Discard, io.Discard
	}
	// One stream that cannot be had ends the other.
	following, cancel := context.WithCancel(ctx)
	defer cancel()
	var both sync.WaitGroup
	var errs [2]error
	c := a.client()
	follow := func(err *error, w io.Writer, from client.OutputStream, offset *int64) {
		both.Go(func() {
			*offset, *err = c.CopyOutput(following, w, at.id, at.ex, from, *offset, client.Resume{
				Patience: reattach,
				Gone: func(first, next int64) {
					say(a.stderr, "emberctl: warning: bytes %d to %d of %s are gone\n", first, next-1, from)
				},
			})
			if *err != nil {
				cancel()
			}
		})
	}
	follow(&errs[0], stdout, client.Stdout, &at.stdout)
	follow(&errs[1], stderr, client.Stderr, &at.stderr)
	both.Wait()
	if ctx.Err() != nil {
		say(a.stderr, "emberctl: the program goes on; to attach again:\n  emberctl attach --stdout-from %d --stderr-from %d %s %s\n",
			at.stdout, at.stderr, at.id, at.ex)
		return context.Cause(ctx)
	}
	if i := slices.IndexFunc(errs[:], func(err error) bool { return err != nil && !errors.Is(err, context.Canceled) }); i >= 0 {
		return &exitError{exitEmberd, errs[i]}
	}
	state, err := a.client().ExecState(ctx, at.id, at.ex)
	if err != nil {
		return &exitError{exitEmberd, err}
	}
	if a.json {
		if err := a.printJSON(state); err != nil {
			return err
		}
	}
	return a.exitAs(state)
}

// exitAs is the end of a program as an error.
func (a *app) exitAs(ex rest.Exec) error {
	if ex.ExitCode == nil {
		return &exitError{exitEmberd, errors.New("the program's output has ended, and it has not")}
	}
	return a.end(client.Result{ExitCode: *ex.ExitCode, Err: ex.Error, LimitsHit: ex.LimitsHit, EgressDenied: ex.EgressDenied})
}

// completeExecs completes the id of a sandbox, and then those of programs that run
// in it: different ones, up to limit arguments if limit is not 0.
func (a *app) completeExecs(limit int) cobra.CompletionFunc {
	ids := a.completeIDs(1)
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 || limit != 0 && len(args) >= limit {
			return ids(cmd, args, word)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		list, err := a.client().Execs(ctx, args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, ex := range list {
			if !slices.Contains(args, ex.ExecID) {
				out = append(out, cobra.CompletionWithDesc(ex.ExecID, ex.State))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
