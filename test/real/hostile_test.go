package real

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// withPack adds a pack to a daemon's data directory: the image of the pack
// shell with another interpreter.
func withPack(t *testing.T, c *daemon.Config, name, interpreter string) {
	t.Helper()
	addPack(t, c.DataDir, "shell", name, interpreter)
}

// addPack adds a pack to a data directory: the image of another one, with another
// interpreter, which is started anew for each program.
func addPack(t *testing.T, data paths.Data, of, name, interpreter string) {
	t.Helper()
	m, err := pack.ReadManifest(data, of)
	if err != nil {
		t.Fatal(err)
	}
	m.Name, m.Interpreter, m.Warm = name, interpreter, nil
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(data.PackManifest(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(data.PackRootfs(of), data.PackRootfs(name)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data.PackManifest(name), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// watch has a neighbour run a program and the daemon say that it is well, all
// the time, until the function it returns is called. That one fails the test if
// an answer was wrong or slow.
func (h *host) watch(t *testing.T, neighbour string, slowest time.Duration) (stop func()) {
	t.Helper()
	execs := oracle.Watch(t.Context(), 500*time.Millisecond, func(ctx context.Context) error {
		res, err := h.Exec(ctx, neighbour, client.Program{Code: "echo ok"})
		if err == nil && string(res.Stdout) != "ok\n" {
			err = errors.New("wrong output " + string(res.Stdout) + res.Err)
		}
		return err
	})
	health := oracle.Watch(t.Context(), 100*time.Millisecond, h.Healthy)
	return func() {
		t.Helper()
		e, p := execs.Stop(), health.Stop()
		t.Logf("neighbour's exec: %v; /healthz: %v", e, p)
		oracle.Report(t, append(e.Findings("the neighbour's exec", slowest), p.Findings("/healthz", slowest)...))
	}
}

// An agent that breaks the protocol harms its own sandbox and nothing else.
func TestEvilAgent(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, func(c *daemon.Config) {
		// The test binary is ten times the size of emberd-init.
		c.Init, c.BootTimeout = self, 2*daemon.DefaultBootTimeout
		withPack(t, c, evilAgent, evilAgent)
		withPack(t, c, "good", goodPrefix+"/bin/sh")
	})
	neighbour, evil := h.create(t, "good"), h.create(t, evilAgent)
	stop := h.watch(t, neighbour, 30*time.Second)

	for _, tt := range []string{
		"4 GiB frame", "two exits", "unknown frame", "impossible exit", "end without exit",
		"forged error", "half a frame", "a byte at a time", "endless output",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if res, err := h.Exec(ctx, evil, client.Program{Code: tt}); err == nil {
			t.Errorf("%s: the result is %+v", tt, res)
		}
		cancel()
		if _, err := h.Exec(t.Context(), evil, client.Program{Code: "behave"}); err != nil {
			t.Errorf("after %s: %v", tt, err)
		}
	}
	for _, tt := range []string{"10,000 streams", "forged console"} {
		_, err := h.Exec(t.Context(), evil, client.Program{Code: tt})
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != "sandbox_lost" {
			t.Errorf("%s: %v, want sandbox_lost", tt, err)
		}
		awaitGone(t, h, evil)
		if tt == "10,000 streams" {
			evil = h.create(t, evilAgent)
		}
	}
	stop()
	if list, err := h.List(t.Context()); err != nil || len(list) != 1 || list[0].ID != neighbour {
		t.Errorf("listed: %v, %v", list, err)
	}
}

// awaitGone waits until a sandbox is off the list.
func awaitGone(t *testing.T, h *host, id string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, err := h.Get(t.Context(), id); isNotFound(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s is still listed", id)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
