package main

import (
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/emberd/emberd/internal/firecracker/fctest"
)

func TestMain(m *testing.M) {
	fctest.Main()
	testscript.Main(m, map[string]func(){"emberctl": main})
}

// TestScripts runs emberctl as its users do, against a daemon for each script.
// Beside testscript's own commands there are:
//
//	exits N PROGRAM [ARG...]     run it: its exit status is N
//	interrupt INT|TERM           send it to the one background program
//	interrupted N                after wait: that program's exit status was N
//	guest MODE                   the next VMM to be launched is of this fctest.Mode
//	hold, release                stop creates whose VM is ready; let them go on
//	await running N              wait until N sandboxes run and nothing is left of others
//	await booting N              wait until N VMMs run that are nobody's sandbox yet
//	await ready N                wait until hold stopped N creates
func TestScripts(t *testing.T) {
	data := fctest.Data(t, t.TempDir())
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			d, err := startDaemon(env, data)
			if err != nil {
				return err
			}
			env.Values[daemonKey{}] = d
			env.Values[interruptedKey{}] = new(exitStatus)
			env.Setenv("EMBERD_ADDR", d.addr)
			// A program built with the race detector otherwise takes a second to exit.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Setenv("EMBERD_DATA_DIR", env.Getenv("WORK")+"/data")
			env.Setenv("EMBERD_RUN_DIR", env.Getenv("WORK")+"/run")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":       exits,
			"interrupt":   interrupt,
			"interrupted": interrupted,
			"guest":       guest,
			"hold":        func(ts *testscript.TestScript, _ bool, _ []string) { daemonOf(ts).ready.hold() },
			"release":     func(ts *testscript.TestScript, _ bool, _ []string) { daemonOf(ts).ready.release() },
			"await":       await,
		},
	})
}

// The keys under which a script's values are kept.
type (
	daemonKey      struct{}
	interruptedKey struct{}
)

func daemonOf(ts *testscript.TestScript) *testDaemon { return ts.Value(daemonKey{}).(*testDaemon) }

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N PROGRAM [ARG...]")
	}
	want := number(ts, args[0])
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := err.(interface{ ExitCode() int })
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM}
	background := ts.BackgroundCmds()
	if neg || len(args) != 1 || signals[args[0]] == nil || len(background) != 1 {
		ts.Fatalf("usage: interrupt INT|TERM, with one program in the background")
	}
	cmd := background[0]
	ts.Check(cmd.Process.Signal(signals[args[0]]))
	*ts.Value(interruptedKey{}).(*exitStatus) = func() int { return cmd.ProcessState.ExitCode() }
}

func interrupted(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: interrupted N")
	}
	status := *ts.Value(interruptedKey{}).(*exitStatus)
	if status == nil {
		ts.Fatalf("nothing was interrupted")
	}
	if got, want := status(), number(ts, args[0]); got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// exitStatus returns the exit status of a program that was waited for.
type exitStatus func() int

func guest(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: guest MODE")
	}
	daemonOf(ts).launcher.Next(fctest.Mode(args[0]))
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || !slices.Contains([]string{"running", "booting", "ready"}, args[0]) {
		ts.Fatalf("usage: await running|booting|ready N")
	}
	d, want := daemonOf(ts), number(ts, args[1])
	deadline := time.Now().Add(10 * time.Second)
	for {
		got, err := d.count(args[0])
		ts.Check(err)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%d sandboxes are %s, want %d", got, args[0], want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}
