package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// shell is the spec of a sandbox that is to be made once.
func shell(tenant, key, body string) sandbox.Spec {
	return sandbox.Spec{Pack: "shell", Once: sandbox.NewOnce(tenant, key, "create", []byte(body))}
}

func (f *fixture) createOnce(spec sandbox.Spec) sandbox.ID {
	f.t.Helper()
	sb, err := f.Create(f.t.Context(), spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return sb.ID
}

// atOnce calls do n times at once and returns the distinct results.
func atOnce[T comparable](n int, do func() T) []T {
	results := make(chan T, n)
	for range n {
		go func() { results <- do() }()
	}
	var all []T
	for range n {
		if got := <-results; !slices.Contains(all, got) {
			all = append(all, got)
		}
	}
	return all
}

// answered are the records of sandboxes that are gone.
func (f *fixture) answered() int {
	f.t.Helper()
	entries, err := os.ReadDir(f.run.Answered())
	if err != nil {
		f.t.Fatal(err)
	}
	return len(entries)
}

func TestCreateOnce(t *testing.T) {
	var later atomic.Int64
	f := newFixture(t, func(c *Config, _ *provision.ColdConfig) {
		c.Uptime = func() time.Duration { return hostUptime() + time.Duration(later.Load()) }
	})
	spec := shell("", "k", "{}")
	ids := atOnce(20, func() sandbox.ID { return f.createOnce(spec) })
	if list := f.List(); len(ids) != 1 || len(list) != 1 || list[0].ID != ids[0] {
		t.Fatalf("twenty requests made %v, and were told %v", list, ids)
	}
	id := ids[0]
	if _, err := f.Create(t.Context(), shell("", "k", `{"pids":20}`)); !errors.Is(err, sandbox.ErrKeyReused) {
		t.Errorf("the key with another body: %v", err)
	}
	others := []sandbox.ID{f.createOnce(shell("somebody", "k", "{}")), f.createOnce(shell("", "k2", "{}"))}
	if slices.Contains(others, id) || others[0] == others[1] {
		t.Errorf("other keys and tenants have %v and %v", id, others)
	}
	f.restart()
	if got := f.createOnce(spec); got != id {
		t.Errorf("after a restart it is %s, not %s", got, id)
	}
	for _, there := range append(others, id) {
		if err := f.Delete(t.Context(), there); err != nil {
			t.Error(err)
		}
	}
	f.awaitEmpty()
	for range 2 {
		if got := f.createOnce(spec); got != id {
			t.Errorf("when it is gone it is %s, not %s", got, id)
		}
		if _, err := f.Create(t.Context(), shell("", "k", `{"pids":20}`)); !errors.Is(err, sandbox.ErrKeyReused) {
			t.Errorf("the key with another body, when it is gone: %v", err)
		}
		if n := f.answered(); n != 3 || len(f.List()) != 0 {
			t.Errorf("%d requests are remembered, and there are %v", n, f.List())
		}
		f.restart()
	}
	later.Store(int64(sandbox.OnceFor))
	again := f.createOnce(spec)
	if again == id {
		t.Error("a key is remembered for ever")
	}
	f.await("the old ones are forgotten", 5*time.Second, func() bool { return f.answered() == 0 })
	// One that outlives its key goes without a trace.
	later.Store(2 * int64(sandbox.OnceFor))
	if err := f.Delete(t.Context(), again); err != nil {
		t.Error(err)
	}
	f.awaitEmpty()
	if n := f.answered(); n != 0 {
		t.Errorf("%d requests are remembered too long", n)
	}
}

// A create that fails leaves nothing, not even its key; those who waited for it are
// told the same.
func TestCreateOnceThatFails(t *testing.T) {
	f := newFixture(t)
	for _, point := range FaultPoints {
		broken := errors.New(point)
		began, goOn := make(chan struct{}), make(chan struct{})
		f.faults.Do(point, func() error { close(began); <-goOn; return broken })
		results := make(chan error, 5)
		for range cap(results) {
			go func() {
				_, err := f.Create(t.Context(), shell("", "k", point))
				results <- err
			}()
		}
		<-began
		f.faults.Do(point, func() error { return broken })
		close(goOn)
		for range cap(results) {
			if err := <-results; !errors.Is(err, broken) {
				t.Errorf("%s: %v", point, err)
			}
		}
		f.faults.Do(point, nil)
		f.restart()
		id := f.createOnce(shell("", "k", "another body"))
		if list := f.List(); len(list) != 1 || list[0].ID != id {
			t.Errorf("%s: after it failed there are %v", point, list)
		}
		if err := f.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
		f.awaitEmpty()
		if n := f.answered(); n != 1 {
			t.Errorf("%s: %d requests are remembered", point, n)
		}
		if err := f.records.Forget(id); err != nil {
			t.Error(err)
		}
		f.restart()
	}
}

func TestCreateOnceAndGoAway(t *testing.T) {
	f := newFixture(t)
	began, goOn := make(chan struct{}), make(chan struct{})
	f.faults.Do(FaultProvide, func() error { close(began); <-goOn; return nil })
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	clients.Go(func() { _, _ = f.Create(ctx, shell("", "k", "")) })
	<-began
	clients.Go(func() {
		if _, err := f.Create(ctx, shell("", "k", "")); !errors.Is(err, context.Canceled) {
			t.Errorf("a client that goes away is told %v", err)
		}
	})
	cancel()
	close(goOn)
	clients.Wait()
	if id := f.createOnce(shell("", "k", "")); len(f.List()) != 1 || f.List()[0].ID != id {
		t.Errorf("there are %v", f.List())
	}
}

func TestOnceKeysAreBounded(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.OnceKeys = 2 })
	first := f.createOnce(shell("", "1", ""))
	f.createOnce(shell("", "2", ""))
	_, err := f.Create(t.Context(), shell("", "3", ""))
	if code, msg := sandbox.Public(err); code != sandbox.CodeQuota || !strings.Contains(msg, "2 requests") {
		t.Errorf("one key too many: %v", err)
	}
	if got := f.createOnce(shell("", "1", "")); got != first {
		t.Error("a key that is known is forgotten")
	}
	f.create()
}

// once is a program that is to be started once.
func once(key, code string) sandbox.ExecRequest {
	return sandbox.ExecRequest{Code: code, Once: sandbox.NewOnce("", key, "exec", []byte(code))}
}

// counted is code that leaves a line in a file of the host each time it is run,
// before it does the rest, and how many there are.
func counted(t *testing.T, rest string) (code string, runs func() int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "runs")
	return fmt.Sprintf("echo run >> %s; %s", file, rest), func() int {
		b, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		return strings.Count(string(b), "\n")
	}
}

// summary is a result as something that can be compared.
func summary(res sandbox.ExecResult, err error) string {
	return fmt.Sprintf("%s status %d after %v, truncated %v: %q %q %v",
		res.ID, res.ExitCode, res.Duration, res.StdoutTruncated, res.Stdout, res.Stderr, err)
}

func TestExecOnce(t *testing.T) {
	heard := &heard{}
	f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Events = heard })
	id := f.createWith(sandbox.Limits{Execs: 1, OutputBytes: 5}).ID
	code, runs := counted(t, "sleep 0.2; echo 1234567; echo err >&2; exit 3")
	req := once("k", code)
	run := func() string { res, err := f.Exec(t.Context(), id, req); return summary(res, err) }
	all := atOnce(20, run)
	if len(all) != 1 || runs() != 1 || !strings.HasSuffix(all[0], `truncated true: "12345" "err\n" <nil>`) {
		t.Fatalf("%d runs: %q", runs(), all)
	}
	if got := run(); got != all[0] || runs() != 1 {
		t.Errorf("%d runs: %s became %s", runs(), all[0], got)
	}
	f.restart()
	if again := atOnce(5, run); len(again) != 1 || again[0] != all[0] || runs() != 1 {
		t.Errorf("%d runs: after a restart, %s became %s", runs(), all[0], again)
	}
	if _, err := f.Exec(t.Context(), id, once("k", "true")); !errors.Is(err, sandbox.ErrKeyReused) {
		t.Errorf("the key for another program: %v", err)
	}
	if _, err := f.StartExec(t.Context(), id, once("k", "true")); !errors.Is(err, sandbox.ErrKeyReused) {
		t.Errorf("the key for another program that is started: %v", err)
	}
	if res, err := f.Exec(t.Context(), id, once("other", code)); err != nil || res.ExitCode != 3 || runs() != 2 {
		t.Errorf("%d runs: another key: %+v, %v", runs(), res, err)
	}
	other := f.create()
	if res, err := f.Exec(t.Context(), other, req); err != nil || res.ExitCode != 3 || runs() != 3 {
		t.Errorf("%d runs: another sandbox: %+v, %v", runs(), res, err)
	}
	ends := slices.DeleteFunc(heard.words(), func(word string) bool { return word != "exec failed" })
	if len(ends) != 3 {
		t.Errorf("%d ends of programs were told, of three", len(ends))
	}
	f.awaitExecs(id, 0)
}

// A program whose start was cut off by the daemon's end is found again, also when
// there is no room for another one.
func TestExecOnceAcrossARestart(t *testing.T) {
	f := newFixture(t)
	id := f.createWith(sandbox.Limits{Execs: 1}).ID
	code, runs := counted(t, "while [ $(wc -l < $0) = 0 ]; do sleep 0.05; done; echo out; exit 4")
	gate := filepath.Join(t.TempDir(), "gate")
	code = strings.ReplaceAll(code, "$0", gate)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	req := once("k", code)
	goAway := func() {
		gone, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if got := atOnce(2, func() string { _, err := f.Exec(gone, id, req); return summary(sandbox.ExecResult{}, err) }); len(got) != 1 {
			t.Errorf("who went away was told %q", got)
		}
	}
	goAway()
	f.awaitExecs(id, 1)
	f.await("the program runs", 5*time.Second, func() bool { return runs() == 1 })
	f.restart()
	goAway()
	again := make(chan string, 3)
	for range cap(again) {
		go func() { res, err := f.Exec(t.Context(), id, req); again <- summary(res, err) }()
	}
	f.awaitExecs(id, 1)
	if err := os.WriteFile(gate, []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range cap(again) {
		if got := <-again; !strings.HasSuffix(got, `"out\n" "" <nil>`) {
			t.Error(got)
		}
	}
	if runs() != 1 {
		t.Errorf("it ran %d times", runs())
	}
	f.awaitExecs(id, 0)
}

func TestStartExecOnce(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	code, runs := counted(t, "cat")
	req := once("k", code)
	req.Stdin, req.StdinOpen = []byte("in"), true
	start := func() sandbox.ExecID { return f.start(id, req) }
	all := atOnce(20, start)
	f.restart()
	if again := start(); len(all) != 1 || again != all[0] {
		t.Errorf("%v, then %s", all, again)
	}
	f.awaitExecs(id, 1)
	if err := f.FeedExec(t.Context(), id, all[0], nil, true); err != nil {
		t.Error(err)
	}
	if got := f.read(id, all[0], sandbox.OutputRequest{Follow: true}); got != "in" || runs() != 1 {
		t.Errorf("%d runs wrote %q", runs(), got)
	}
	f.awaitExecs(id, 0)
	if again := start(); again != all[0] || runs() != 1 {
		t.Errorf("%d runs, %s, when it has ended", runs(), again)
	}
}

// What can be had no longer is said to be gone, and the program is not run again.
func TestExecOnceThatIsForgotten(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	code, runs := counted(t, "head -c 3000000 /dev/zero")
	if res, err := f.Exec(t.Context(), id, once("k", code)); err != nil || len(res.Stdout) != 3_000_000 {
		t.Fatalf("%d bytes, %v", len(res.Stdout), err)
	}
	_, err := f.Exec(t.Context(), id, once("k", code))
	gone, ok := errors.AsType[*sandbox.Error](err)
	if !ok || gone.Code != sandbox.CodeOutputGone || gone.FirstOffset <= 0 || runs() != 1 {
		t.Errorf("%d runs: %v", runs(), err)
	}
	for i := range 65 {
		if _, err := f.Exec(t.Context(), id, once(fmt.Sprint(i), "true")); err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.Exec(t.Context(), id, once("k", code))
	if code, _ := sandbox.Public(err); code != sandbox.CodeOutputGone || runs() != 1 {
		t.Errorf("%d runs, when it is forgotten: %v", runs(), err)
	}
	if _, err = f.Exec(t.Context(), id, once("k", "true")); !errors.Is(err, sandbox.ErrKeyReused) {
		t.Errorf("the key for another program, when it is forgotten: %v", err)
	}
}

// A program that does not begin leaves its key unused.
func TestExecOnceThatFails(t *testing.T) {
	f := newFixture(t)
	id := f.createWith(sandbox.Limits{Execs: 1}).ID
	code, runs := counted(t, "true")
	f.faults.Fail(FaultExec)
	if _, err := f.Exec(t.Context(), id, once("k", code)); err == nil {
		t.Error("it did not fail")
	}
	f.faults.Do(FaultExec, nil)
	busy := f.start(id, sandbox.ExecRequest{Code: "cat", StdinOpen: true})
	for _, do := range []func() error{
		func() error { _, err := f.Exec(t.Context(), id, once("k", code)); return err },
		func() error { _, err := f.StartExec(t.Context(), id, once("k", code)); return err },
	} {
		if err := do(); !errors.Is(err, sandbox.ErrQuota) {
			t.Errorf("while another one runs: %v", err)
		}
	}
	if err := f.FeedExec(t.Context(), id, busy, nil, true); err != nil {
		t.Error(err)
	}
	f.awaitExecs(id, 0)
	if _, err := f.Exec(t.Context(), id, once("k", code)); err != nil || runs() != 1 {
		t.Errorf("%d runs, %v", runs(), err)
	}
	if _, err := f.Exec(t.Context(), "sb_000000000000", once("k", code)); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("no such sandbox: %v", err)
	}
}
