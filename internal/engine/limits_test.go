package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// clock is a clock that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// lookAgain has the deadlines looked at now, as a clock of its own may have passed
// some.
func (f *fixture) lookAgain() { f.alarm.timer.Reset(0) }

// advance sets the clock forward, which f's deadlines are to notice.
func (c *clock) advance(f *fixture, by time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(by)
	c.mu.Unlock()
	f.lookAgain()
}

// createWith makes a sandbox with those limits.
func (f *fixture) createWith(limits sandbox.Limits) sandbox.Sandbox {
	f.t.Helper()
	sb, err := f.Create(f.t.Context(), sandbox.Spec{Pack: "shell", Limits: limits})
	if err != nil {
		f.t.Fatal(err)
	}
	return sb
}

// await waits until something is so.
func (f *fixture) await(what string, limit time.Duration, is func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(limit); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited %v in vain: %s", limit, what)
		}
	}
}

// awaitExecs waits until n programs run in the sandbox.
func (f *fixture) awaitExecs(id sandbox.ID, n int) {
	f.t.Helper()
	f.await(fmt.Sprint(n, " programs run"), 10*time.Second, func() bool {
		en := f.find(id)
		en.mu.Lock()
		defer en.mu.Unlock()
		return en.execs == n
	})
}

func TestEndsOfLife(t *testing.T) {
	const lifetime, idleTimeout = time.Hour, 10 * time.Minute
	for _, tt := range []struct {
		name   string
		live   func(f *fixture, c *clock, id sandbox.ID)
		alive  bool
		reason reason
	}{
		{name: "idle not long enough", live: func(f *fixture, c *clock, _ sandbox.ID) { c.advance(f, idleTimeout-time.Second) }, alive: true},
		{name: "idle", live: func(f *fixture, c *clock, _ sandbox.ID) { c.advance(f, idleTimeout) }, reason: idle},
		{name: "a program in between", live: func(f *fixture, c *clock, id sandbox.ID) {
			for range 4 {
				c.advance(f, idleTimeout-time.Second)
				if _, err := f.Exec(f.t.Context(), id, sandbox.ExecRequest{Code: "true"}); err != nil {
					f.t.Fatal(err)
				}
			}
		}, alive: true},
		{name: "lifetime, however busy", live: func(f *fixture, c *clock, id sandbox.ID) {
			for range 7 {
				if _, err := f.Exec(f.t.Context(), id, sandbox.ExecRequest{Code: "true"}); err != nil {
					f.t.Fatal(err)
				}
				c.advance(f, idleTimeout-time.Minute)
			}
		}, reason: expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, log := newClock(), &testenv.Log{}
			f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) {
				cfg.Now, cfg.Log = c.Now, slog.New(slog.NewTextHandler(log, nil))
			})
			sb := f.createWith(sandbox.Limits{Lifetime: lifetime, IdleTimeout: idleTimeout})
			if got := sb.ExpiresAt.Sub(sb.CreatedAt); got != lifetime {
				t.Errorf("expires %v after it was created", got)
			}
			tt.live(f, c, sb.ID)
			if tt.alive {
				if next, overdue := f.find(sb.ID).expire(c.Now()); overdue != "" {
					t.Errorf("ended, because %s, before %v", overdue, next)
				}
				return
			}
			f.await("the sandbox is gone", 10*time.Second, func() bool { return f.find(sb.ID) == nil })
			if _, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "true"}); !errors.Is(err, sandbox.ErrNotFound) {
				t.Errorf("exec afterwards: %v", err)
			}
			f.await("the log to say why", 10*time.Second, func() bool { return strings.Contains(log.String(), string(tt.reason)) })
			f.checkEmpty()
		})
	}
}

func TestEndWhileAProgramRuns(t *testing.T) {
	c := newClock()
	f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) { cfg.Now = c.Now })
	sb := f.createWith(sandbox.Limits{Lifetime: time.Hour, IdleTimeout: time.Minute})
	failed := make(chan error, 1)
	go func() {
		_, err := f.Exec(context.WithoutCancel(t.Context()), sb.ID, sandbox.ExecRequest{Code: "sleep 60"})
		failed <- err
	}()
	f.awaitExecs(sb.ID, 1)
	if got, err := f.Get(sb.ID); err != nil || !got.IdleExpiresAt.IsZero() {
		t.Errorf("idle deadline %v, %v while a program runs", got.IdleExpiresAt, err)
	}
	c.advance(f, 59*time.Minute)
	if _, overdue := f.find(sb.ID).expire(c.Now()); overdue != "" {
		t.Errorf("ended, because %s, while a program runs", overdue)
	}
	c.advance(f, time.Minute)
	err := <-failed
	if code, msg := sandbox.Public(err); code != sandbox.CodeLost || !strings.Contains(msg, string(expired)) {
		t.Errorf("got %v", err)
	}
}

func TestTimersRunByThemselves(t *testing.T) {
	f := newFixture(t)
	short := f.createWith(sandbox.Limits{IdleTimeout: time.Second})
	long := f.createWith(sandbox.Limits{IdleTimeout: time.Hour, Lifetime: time.Hour})
	f.await("the idle one is gone", 10*time.Second, func() bool { return f.find(short.ID) == nil })
	if took := time.Since(short.CreatedAt); took < time.Second {
		t.Errorf("gone after %v", took)
	}
	if _, err := f.Get(long.ID); err != nil {
		t.Error(err)
	}
}

func TestExecsAtATime(t *testing.T) {
	f := newFixture(t)
	sb := f.createWith(sandbox.Limits{Execs: 2})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { _, _ = f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "sleep 1"}) })
	}
	f.awaitExecs(sb.ID, 2)
	_, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "true"})
	if code, msg := sandbox.Public(err); code != sandbox.CodeQuota || msg != "2 programs run in the sandbox, as many as its limit execs allows" {
		t.Errorf("the third: %v", err)
	}
	wg.Wait()
	if _, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "true"}); err != nil {
		t.Errorf("after the others: %v", err)
	}
}

func TestExecTimeoutAndOutput(t *testing.T) {
	f := newFixture(t)
	sb := f.createWith(sandbox.Limits{ExecTimeout: time.Second, OutputBytes: 5})
	res, err := f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "sleep 60"})
	if err != nil || res.Err != sandbox.ErrTextTimedOut || res.Duration < time.Second || res.Duration > 5*time.Second {
		t.Errorf("no time limit: %q after %v, %v", res.Err, res.Duration, err)
	}
	_, err = f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "true", Timeout: 1001 * time.Millisecond})
	if code, msg := sandbox.Public(err); code != sandbox.CodeInvalid || msg != "timeout_ms is 1001; the sandbox's exec_timeout_s allows 1000 at most" {
		t.Errorf("a longer time limit: %v", err)
	}
	res, err = f.Exec(t.Context(), sb.ID, sandbox.ExecRequest{Code: "printf 0123456789; printf 01234 >&2"})
	if err != nil || string(res.Stdout) != "01234" || !res.StdoutTruncated || string(res.Stderr) != "01234" || res.StderrTruncated {
		t.Errorf("output: %q %v, %q %v, %v", res.Stdout, res.StdoutTruncated, res.Stderr, res.StderrTruncated, err)
	}
}

func TestLimitsOverTheCeilingStartNothing(t *testing.T) {
	f := newFixture(t)
	_, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell", Limits: sandbox.Limits{PIDs: 1 << 20}})
	if code, _ := sandbox.Public(err); code != sandbox.CodeInvalid {
		t.Errorf("got %v", err)
	}
	f.checkEmpty()
}

// Two sandboxes fit each capacity, and a third one does when one of them is gone.
func TestCapacity(t *testing.T) {
	const all = 1 << 20
	size := sandbox.Size{VCPUs: 2, MemoryMiB: 300}
	for _, tt := range []struct {
		name     string
		capacity Capacity
		code     sandbox.Code
		msg      string
	}{
		{"sandboxes", Capacity{Sandboxes: 2, MemoryMiB: all, VCPUs: all}, sandbox.CodeQuota, "there are 2 sandboxes, as many as this emberd allows"},
		{"memory", Capacity{Sandboxes: all, MemoryMiB: 800, VCPUs: all}, sandbox.CodeCapacity, "memory_mib 300 takes 364 MiB of the host with its VMM; 72 of 800 MiB are free"},
		{"virtual CPUs", Capacity{Sandboxes: all, MemoryMiB: all, VCPUs: 5}, sandbox.CodeCapacity, "vcpus is 2; 1 of 5 are free"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) { cfg.Capacity = tt.capacity })
			limits := sandbox.Limits{Size: size}
			first := f.createWith(limits)
			f.createWith(limits)
			_, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell", Limits: limits})
			if code, msg := sandbox.Public(err); code != tt.code || msg != tt.msg {
				t.Errorf("got %s, %q, want %s, %q", code, msg, tt.code, tt.msg)
			}
			if err := f.Delete(t.Context(), first.ID); err != nil {
				t.Fatal(err)
			}
			f.await("the first is gone", 10*time.Second, func() bool { return f.find(first.ID) == nil })
			f.createWith(limits)
		})
	}
}

// What a create that fails was promised is free again.
func TestFailedCreatesTakeNoRoom(t *testing.T) {
	f := newFixture(t)
	f.faults.Fail(FaultReady)
	if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"}); err == nil {
		t.Fatal("it succeeded")
	}
	if f.promised != (Capacity{}) {
		t.Errorf("still promised: %+v", f.promised)
	}
}

// However many creates race, exactly as many succeed as the quota allows.
func TestQuotaRaces(t *testing.T) {
	const rounds, creates, quota = 20, 50, 3
	f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) { cfg.Capacity.Sandboxes = quota })
	for round := range rounds {
		var (
			wg      sync.WaitGroup
			mu      sync.Mutex
			made    []sandbox.ID
			refused int
		)
		for range creates {
			wg.Go(func() {
				sb, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					made = append(made, sb.ID)
				case errors.Is(err, sandbox.ErrQuota):
					refused++
				default:
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		if len(made) != quota || refused != creates-quota {
			t.Errorf("round %d: %d made, %d refused", round, len(made), refused)
		}
		for _, id := range made {
			if err := f.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		f.awaitEmpty()
	}
	if f.promised != (Capacity{}) {
		t.Errorf("still promised: %+v", f.promised)
	}
}

// A VMM that is killed, whatever its sandbox is doing, leaves nobody waiting for
// more than two seconds and nothing behind for more than five.
func TestVMMKilledAtAnyTime(t *testing.T) {
	const rounds = 50
	f := newFixture(t)
	for range rounds {
		answered := make(chan error, 1)
		go func() {
			sb, err := f.Create(context.WithoutCancel(t.Context()), sandbox.Spec{Pack: "shell"})
			if err == nil {
				_, err = f.Exec(context.WithoutCancel(t.Context()), sb.ID, sandbox.ExecRequest{Code: "sleep 60"})
			}
			answered <- err
		}()
		f.await("there is a VMM", 10*time.Second, func() bool { return len(f.launcher.Running()) > 0 })
		time.Sleep(rand.N(150 * time.Millisecond))
		for _, pid := range f.launcher.Running() {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		killed := time.Now()
		err := <-answered
		if took := time.Since(killed); took > 2*time.Second {
			t.Errorf("answered after %v", took)
		}
		switch code, _ := sandbox.Public(err); code {
		case sandbox.CodeBoot, sandbox.CodeLost, sandbox.CodeNotFound:
		default:
			t.Errorf("no definite answer: %v", err)
		}
		f.await("it is cleared", 5*time.Second, func() bool { return len(f.entriesNow()) == 0 && len(f.launcher.Running()) == 0 })
	}
	f.checkEmpty()
}

// entriesNow is what is in the table.
func (f *fixture) entriesNow() []sandbox.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []sandbox.ID
	for id := range f.entries {
		ids = append(ids, id)
	}
	return ids
}

// A VMM that is stopped is found out and taken down, and a neighbour is not.
func TestSilentAgent(t *testing.T) {
	log := &testenv.Log{}
	f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) { cfg.Log = slog.New(slog.NewTextHandler(log, nil)) })
	sb := f.create()
	stopped := f.launcher.Running()
	neighbour := f.create()
	if len(stopped) != 1 {
		t.Fatalf("VMMs: %v", stopped)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := f.Exec(context.WithoutCancel(t.Context()), sb, sandbox.ExecRequest{Code: "sleep 60"})
		failed <- err
	}()
	f.awaitExecs(sb, 1)
	began := time.Now()
	if err := syscall.Kill(stopped[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err := <-failed
	took := time.Since(began)
	if code, msg := sandbox.Public(err); code != sandbox.CodeLost || !strings.Contains(msg, string(unresponsive)) || took > 10*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	f.await("it is cleared", 5*time.Second, func() bool { return f.find(sb) == nil })
	if !strings.Contains(log.String(), string(unresponsive)) {
		t.Errorf("the log does not say why: %s", log)
	}
	if _, err := f.Exec(t.Context(), neighbour, sandbox.ExecRequest{Code: "true"}); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
}
