package main

import (
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"emberctl": main})
}

// TestScripts runs emberctl as its users do. Beside testscript's own commands
// there are:
//
//	exits N PROGRAM [ARG...]     run it: its exit status is N
//	interrupt INT|TERM           send it to the one background program
//	interrupted N                after wait: that program's exit status was N
//	await running|creating N     wait until the daemon has N such sandboxes
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			e, addr := startDaemon(env)
			env.Values[engineKey{}] = e
			env.Values[interruptedKey{}] = new(exitStatus)
			env.Setenv("EMBERD_ADDR", addr)
			env.Setenv("EMBERD_DATA_DIR", env.Getenv("WORK")+"/data")
			env.Setenv("EMBERD_RUN_DIR", env.Getenv("WORK")+"/run")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":       exits,
			"interrupt":   interrupt,
			"interrupted": interrupted,
			"await":       await,
		},
	})
}

// The keys under which a script's values are kept.
type (
	engineKey      struct{}
	interruptedKey struct{}
)

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

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || args[0] != "running" && args[0] != "creating" {
		ts.Fatalf("usage: await running|creating N")
	}
	e, want := ts.Value(engineKey{}).(*hostEngine), number(ts, args[1])
	deadline := time.Now().Add(10 * time.Second)
	for {
		running, creating := e.counts()
		got := map[string]int{"running": running, "creating": creating}[args[0]]
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
