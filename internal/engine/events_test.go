package engine

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// heard is what an engine published.
type heard struct {
	mu  sync.Mutex
	all []sandbox.Event
}

func (h *heard) Publish(event sandbox.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, event)
}

// words are the events as "KIND REASON".
func (h *heard) words() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var words []string
	for _, event := range h.all {
		word := string(event.Kind)
		if event.Reason != "" {
			word += " " + event.Reason
		}
		words = append(words, word)
	}
	return words
}

func TestEventsTellALife(t *testing.T) {
	run := func(code string, timeout time.Duration) func(*fixture, sandbox.ID) {
		return func(f *fixture, id sandbox.ID) {
			_, _ = f.Exec(f.t.Context(), id, sandbox.ExecRequest{Code: code, Timeout: timeout})
		}
	}
	remove := func(f *fixture, id sandbox.ID) {
		if err := f.Delete(f.t.Context(), id); err != nil {
			f.t.Error(err)
		}
	}
	signal := func(sig syscall.Signal) func(*fixture, sandbox.ID) {
		return func(f *fixture, _ sandbox.ID) { _ = syscall.Kill(f.launcher.Running()[0], sig) }
	}
	tests := map[string]struct {
		life []func(*fixture, sandbox.ID)
		want []string
	}{
		"programs":  {[]func(*fixture, sandbox.ID){run("true", 0), run("exit 3", 0), remove}, []string{"exec ok", "exec failed", "deleted request"}},
		"timed out": {[]func(*fixture, sandbox.ID){run("sleep 100", 50*time.Millisecond), remove}, []string{"exec timed_out", "deleted request"}},
		"lost":      {[]func(*fixture, sandbox.ID){signal(syscall.SIGKILL)}, []string{"lost vmm_ended"}},
		"too much memory": {[]func(*fixture, sandbox.ID){
			func(f *fixture, _ sandbox.ID) { f.launcher.OOM.Store(true) }, signal(syscall.SIGKILL),
		}, []string{"oom host", "lost host_oom"}},
		"silent": {[]func(*fixture, sandbox.ID){signal(syscall.SIGSTOP)}, []string{"lost agent_silent"}},
		"disconnected": {[]func(*fixture, sandbox.ID){func(f *fixture, id sandbox.ID) {
			_, vm := f.find(id).snapshot()
			_ = vm.Agent.Close()
		}}, []string{"lost agent_disconnected"}},
		"idle": {[]func(*fixture, sandbox.ID){func(f *fixture, id sandbox.ID) {
			en := f.find(id)
			en.mu.Lock()
			en.idleSince = en.idleSince.Add(-time.Hour / 2)
			en.mu.Unlock()
			f.lookAgain()
		}}, []string{"expired idle"}},
		"expired": {[]func(*fixture, sandbox.ID){func(f *fixture, id sandbox.ID) {
			en := f.find(id)
			en.mu.Lock()
			en.began = en.began.Add(-time.Hour)
			en.mu.Unlock()
			f.lookAgain()
		}}, []string{"expired lifetime"}},
		"client went away": {[]func(*fixture, sandbox.ID){func(f *fixture, id sandbox.ID) {
			ctx, cancel := context.WithTimeout(f.t.Context(), 50*time.Millisecond)
			defer cancel()
			_, _ = f.Exec(ctx, id, sandbox.ExecRequest{Code: "sleep 0.5; exit 3"})
			f.awaitExecs(id, 0)
		}, remove}, []string{"exec failed", "deleted request"}},
		"closed": {[]func(*fixture, sandbox.ID){func(f *fixture, _ sandbox.ID) {
			if err := f.Close(context.Background()); err != nil {
				f.t.Error(err)
			}
		}}, []string{"deleted shutdown"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			events, log := &heard{}, &testenv.Log{}
			f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) {
				cfg.Events, cfg.Log = events, slog.New(slog.NewTextHandler(log, nil))
			})
			id := f.create()
			for _, step := range tt.life {
				step(f, id)
			}
			want := append([]string{"created", "ready"}, tt.want...)
			f.await("all is told", 20*time.Second, func() bool {
				return len(events.words()) >= len(want) && strings.Contains(log.String(), "sandbox gone")
			})
			if got := events.words(); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			f.await("the log to say why", 10*time.Second, func() bool { return strings.Contains(log.String(), `msg="sandbox gone"`) })
			if n := strings.Count(log.String(), `msg="sandbox gone"`); n != 1 {
				t.Errorf("the log says %d times that it is gone", n)
			}
			for _, event := range events.all {
				if event.Sandbox != id || event.Pack != "shell" || event.Kind != sandbox.EventCreated && event.BootPath != sandbox.ColdBoot {
					t.Errorf("got %+v of %s", event, id)
				}
			}
		})
	}
}

func TestEventsTellWhatDidNotComeToBe(t *testing.T) {
	events := &heard{}
	f := newFixture(t, func(cfg *Config, cold *provision.ColdConfig) {
		cfg.Events, cfg.Capacity.Sandboxes, cold.Timeout = events, 1, time.Second
	})
	f.launcher.Next(fctest.Stillborn, fctest.Stillborn)
	if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"}); !errors.Is(err, sandbox.ErrBoot) {
		t.Fatal(err)
	}
	f.launcher.Next() // one that was slow to end was tried again, with the second
	f.create()
	if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"}); !errors.Is(err, sandbox.ErrQuota) {
		t.Fatal(err)
	}
	want := []string{"created", "failed boot_failed", "created", "ready", "rejected quota_exceeded"}
	if got := events.words(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLoads(t *testing.T) {
	f := newFixture(t)
	f.create()
	all := f.Loads()
	if len(all) != 1 || all[0].State != sandbox.Running || all[0].Execs != 0 || all[0].VM == "" {
		t.Errorf("got %+v", all)
	}
	promised, capacity := f.Promised()
	if promised.Sandboxes != 1 || promised.MemoryMiB != sandbox.DefaultSize.PromisedMiB() || capacity.Sandboxes != 100 {
		t.Errorf("promised %+v of %+v", promised, capacity)
	}
}

// A program that a daemon leaves behind is told of once, by the next one.
func TestEventsAcrossARestart(t *testing.T) {
	events := &heard{}
	f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) { cfg.Events = events })
	f.start(f.create(), sandbox.ExecRequest{Code: "sleep 1; exit 3"})
	f.restart()
	want := []string{"created", "ready", "adopted", "exec failed"}
	f.await("its end", 10*time.Second, func() bool { return len(events.words()) >= len(want) })
	if got := events.words(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
