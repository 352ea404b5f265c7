package engine

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/sandbox"
)

func (f *fixture) start(id sandbox.ID, req sandbox.ExecRequest) sandbox.ExecID {
	f.t.Helper()
	ex, err := f.StartExec(f.t.Context(), id, req)
	if err != nil {
		f.t.Fatal(err)
	}
	return ex
}

// read reads the output of a program to its end.
func (f *fixture) read(id sandbox.ID, ex sandbox.ExecID, req sandbox.OutputRequest) string {
	f.t.Helper()
	r, err := f.ExecOutput(f.t.Context(), id, ex, req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		f.t.Error(err)
	}
	return string(b)
}

// ended waits until a program has ended, and returns how.
func (f *fixture) ended(id sandbox.ID, ex sandbox.ExecID) sandbox.ExecResult {
	f.t.Helper()
	var got sandbox.Exec
	f.await("the program has ended", 10*time.Second, func() bool {
		var err error
		if got, err = f.GetExec(f.t.Context(), id, ex); err != nil {
			f.t.Fatal(err)
		}
		return got.Result != nil
	})
	return *got.Result
}

func TestStartExec(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	ex := f.start(id, sandbox.ExecRequest{Code: "cat; read x; echo $x >&2; exit 3", Stdin: []byte("a\n"), StdinOpen: true})
	f.awaitExecs(id, 1)
	if sb, err := f.Get(id); err != nil || !sb.IdleExpiresAt.IsZero() {
		t.Errorf("idle deadline %v, %v while a program runs", sb.IdleExpiresAt, err)
	}
	got, err := f.GetExec(t.Context(), id, ex)
	if err != nil || got.ID != ex || got.Result != nil || !got.StdinOpen || time.Since(got.StartedAt) > time.Minute {
		t.Errorf("%+v, %v", got, err)
	}
	if err := f.FeedExec(t.Context(), id, ex, []byte("b\n"), true); err != nil {
		t.Error(err)
	}
	if got := f.read(id, ex, sandbox.OutputRequest{Follow: true}); got != "a\nb\n" {
		t.Errorf("stdout %q", got)
	}
	if got := f.read(id, ex, sandbox.OutputRequest{Stderr: true, Follow: true}); got != "\n" {
		t.Errorf("stderr %q", got)
	}
	if res := f.ended(id, ex); res.ExitCode != 3 || res.Err != "" || res.ID != ex {
		t.Errorf("%+v", res)
	}
	f.awaitExecs(id, 0)
	list, err := f.Execs(t.Context(), id)
	if err != nil || len(list) != 1 || list[0].ID != ex || list[0].Stdout != (sandbox.Span{End: 4}) {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestExecsThatCannotBeHad(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	ex := f.start(id, sandbox.ExecRequest{Code: "exit 0"})
	f.ended(id, ex)
	const nobody = "sb_000000000000"
	for name, tt := range map[string]struct {
		do   func() error
		want sandbox.Code
	}{
		"start": {func() error { _, err := f.StartExec(t.Context(), nobody, sandbox.ExecRequest{}); return err }, sandbox.CodeNotFound},
		"too long": {func() error {
			_, err := f.StartExec(t.Context(), id, sandbox.ExecRequest{Timeout: 1000 * time.Hour})
			return err
		}, sandbox.CodeInvalid},
		"list":   {func() error { _, err := f.Execs(t.Context(), nobody); return err }, sandbox.CodeNotFound},
		"get":    {func() error { _, err := f.GetExec(t.Context(), id, "ex_000000000000"); return err }, sandbox.CodeNotFound},
		"feed":   {func() error { return f.FeedExec(t.Context(), id, ex, nil, true) }, sandbox.CodeEnded},
		"signal": {func() error { return f.SignalExec(t.Context(), id, ex, 15) }, sandbox.CodeEnded},
		"beyond": {func() error {
			_, err := f.ExecOutput(t.Context(), id, ex, sandbox.OutputRequest{Offset: 1})
			return err
		}, sandbox.CodeInvalid},
		"no output": {func() error { _, err := f.ExecOutput(t.Context(), nobody, ex, sandbox.OutputRequest{}); return err }, sandbox.CodeNotFound},
	} {
		if code, _ := sandbox.Public(tt.do()); code != tt.want {
			t.Errorf("%s: %s, want %s", name, code, tt.want)
		}
	}
}

func TestOutputThatIsGone(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	ex := f.start(id, sandbox.ExecRequest{Code: "head -c 3000000 /dev/zero"})
	f.ended(id, ex)
	_, err := f.ExecOutput(t.Context(), id, ex, sandbox.OutputRequest{})
	gone, ok := errors.AsType[*sandbox.Error](err)
	if !ok || gone.Code != sandbox.CodeOutputGone || gone.FirstOffset < 3000000-1<<20 {
		t.Fatalf("%+v", err)
	}
	if got := f.read(id, ex, sandbox.OutputRequest{Offset: gone.FirstOffset}); int64(len(got)) != 3000000-gone.FirstOffset {
		t.Errorf("%d bytes from %d on", len(got), gone.FirstOffset)
	}
}

// A client that goes away leaves a program that goes on, counts, and tells how it
// ended.
func TestClientThatGoesAway(t *testing.T) {
	f := newFixture(t)
	sb := f.createWith(sandbox.Limits{Execs: 1})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := f.Exec(ctx, sb.ID, sandbox.ExecRequest{Code: "echo begun; sleep 0.5; exit 4"})
		failed <- err
	}()
	f.awaitExecs(sb.ID, 1)
	var ex sandbox.ExecID
	f.await("it is known", 5*time.Second, func() bool {
		list, err := f.Execs(t.Context(), sb.ID)
		if err != nil || len(list) != 1 || list[0].Stdout.End == 0 {
			return false
		}
		ex = list[0].ID
		return true
	})
	cancel()
	err := <-failed
	if code, msg := sandbox.Public(err); code != sandbox.CodeCanceled || !strings.Contains(msg, string(ex)) {
		t.Errorf("%v", err)
	}
	res := f.ended(sb.ID, ex)
	if res.ExitCode != 4 {
		t.Errorf("%+v", res)
	}
	if got := f.read(sb.ID, ex, sandbox.OutputRequest{}); got != "begun\n" {
		t.Errorf("%q", got)
	}
	f.awaitExecs(sb.ID, 0)
}

// The time limit of a program that nobody waits for is kept, and it counts as long
// as it runs.
func TestStartedExecHasALimit(t *testing.T) {
	f := newFixture(t)
	sb := f.createWith(sandbox.Limits{Execs: 1})
	ex := f.start(sb.ID, sandbox.ExecRequest{Code: "sleep 60", Timeout: time.Second})
	if _, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "true"}); !errors.Is(err, sandbox.ErrQuota) {
		t.Errorf("another one: %v", err)
	}
	if res := f.ended(sb.ID, ex); res.Err != sandbox.ErrTextTimedOut || res.ExitCode != -1 {
		t.Errorf("%+v", res)
	}
	f.awaitExecs(sb.ID, 0)
}

func TestSignalAndDelete(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	ex := f.start(id, sandbox.ExecRequest{Code: "echo ready; sleep 60"})
	out, err := f.ExecOutput(t.Context(), id, ex, sandbox.OutputRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := f.SignalExec(t.Context(), id, ex, 15); err != nil {
		t.Fatal(err)
	}
	if res := f.ended(id, ex); res.ExitCode != 143 {
		t.Errorf("%+v", res)
	}
	if _, err := io.ReadAll(out); err != nil {
		t.Errorf("a follower to the end: %v", err)
	}
	ex = f.start(id, sandbox.ExecRequest{Code: "sleep 60"})
	follower, err := f.ExecOutput(t.Context(), id, ex, sandbox.OutputRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	if err := f.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(follower); err == nil {
		t.Error("the output of a program that was taken down has an end")
	}
	f.awaitEmpty()
}

// A program that fails to begin leaves nothing, and does not count.
func TestExecThatFailsToBegin(t *testing.T) {
	f := newFixture(t)
	sb := f.createWith(sandbox.Limits{Execs: 1})
	f.faults.Fail(FaultExec)
	if _, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "true"}); err == nil {
		t.Error("it ran")
	}
	if _, err := f.StartExec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "true"}); err == nil {
		t.Error("it was started")
	}
	f.faults.Do(FaultExec, func() error { return nil })
	if list := mustExecs(t, f, sb.ID); len(list) > 0 {
		t.Errorf("%+v", list)
	}
	if res, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "exit 3"}); err != nil || res.ExitCode != 3 {
		t.Errorf("%+v, %v", res, err)
	}
}

// A daemon that comes upon a VM counts what runs there.
func TestResumedExecsCount(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	en := f.find(id)
	_, vm := en.snapshot()
	for ex, code := range map[string]string{"ex_000000000001": "exit 0", "ex_000000000002": "read x; exit 5"} {
		if err := vm.Agent.StartExec(t.Context(), agent.Command{ID: ex, Code: code, Timeout: time.Minute}, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	f.ended(id, "ex_000000000001")
	if err := f.resumeExecs(t.Context(), en); err != nil {
		t.Fatal(err)
	}
	f.awaitExecs(id, 1)
	if err := f.FeedExec(t.Context(), id, "ex_000000000002", nil, true); err != nil {
		t.Fatal(err)
	}
	f.awaitExecs(id, 0)
	if res := f.ended(id, "ex_000000000002"); res.ExitCode != 5 {
		t.Errorf("%+v", res)
	}
}

// A daemon that leaves does not wait for programs, and the next one finds them:
// they count, their output goes on where a reader was, and their end is theirs.
func TestExecsOutliveTheDaemon(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	ex := f.start(id, sandbox.ExecRequest{Code: "echo one; read x; echo $x; exit 6", StdinOpen: true})
	gone, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := f.Exec(gone, id, sandbox.ExecRequest{Code: "sleep 60"}); err == nil {
		t.Error("it did not take its time")
	}
	f.awaitExecs(id, 2)
	follower, err := f.ExecOutput(t.Context(), id, ex, sandbox.OutputRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	if _, err := io.ReadFull(follower, make([]byte, len("one\n"))); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	f.restart()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if _, err := io.ReadAll(follower); err == nil {
		t.Error("what was broken off looks like an end")
	}
	f.awaitExecs(id, 2)
	if err := f.FeedExec(t.Context(), id, ex, []byte("two\n"), true); err != nil {
		t.Fatal(err)
	}
	if got := f.read(id, ex, sandbox.OutputRequest{Offset: 4, Follow: true}); got != "two\n" {
		t.Errorf("%q", got)
	}
	if res := f.ended(id, ex); res.ExitCode != 6 {
		t.Errorf("%+v", res)
	}
	f.awaitExecs(id, 1)
	for _, other := range mustExecs(t, f, id) {
		if other.Result == nil {
			if err := f.SignalExec(t.Context(), id, other.ID, 9); err != nil {
				t.Error(err)
			}
		}
	}
	f.awaitExecs(id, 0)
}

func mustExecs(t *testing.T, f *fixture, id sandbox.ID) []sandbox.Exec {
	t.Helper()
	list, err := f.Execs(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
