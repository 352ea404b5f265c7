package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/x/fault"
)

// runUntil runs a daemon until the function it returns is called.
func runUntil(t *testing.T, cfg Config) (*Daemon, func()) {
	t.Helper()
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	return d, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func awaitReady(t *testing.T, d *Daemon) {
	t.Helper()
	select {
	case <-d.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("it does not become ready")
	}
}

func TestNextDaemonGoesOn(t *testing.T) {
	cfg := fakeConfig(t)
	cfg.OnExit, cfg.Templates = Keep, false
	cfg.Pool = map[string]pool.Bounds{"shell": {Min: 1, Max: 1}}
	cfg.Faults = &fault.Set{}
	launcher := cfg.Launcher.(*fctest.Launcher)

	d, end := runUntil(t, cfg)
	awaitReady(t, d)
	c := client.New(d.Addr())
	id, err := c.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the pool", func() bool { s, err := c.Pool(t.Context()); return err == nil && s[0].Ready == 1 })
	end()
	vmms := launcher.Running()
	if len(vmms) != 2 {
		t.Errorf("%d VMMs go on, want the sandbox's and the pool's", len(vmms))
	}

	seen := make(chan struct{})
	held := make(chan struct{})
	cfg.Faults.Do(engine.FaultRecover, func() error {
		select {
		case seen <- struct{}{}:
		default:
		}
		<-held
		return nil
	})
	cfg.OnExit = Stop
	d, end = runUntil(t, cfg)
	<-seen
	c = client.New(d.Addr())
	if err := c.Healthy(t.Context()); err != nil {
		t.Errorf("while it starts: %v", err)
	}
	for what, ask := range map[string]func() error{
		"readyz": func() error { return c.Ready(t.Context()) },
		"list":   func() error { _, err := c.List(t.Context()); return err },
		"get":    func() error { _, err := c.Get(t.Context(), id); return err },
		"create": func() error { _, err := c.Create(t.Context(), "shell"); return err },
		"exec":   func() error { _, err := c.Exec(t.Context(), id, client.Program{Code: "true"}); return err },
		"delete": func() error { return c.Delete(t.Context(), id) },
	} {
		if e, ok := errors.AsType[*client.Error](ask()); !ok || e.Status != http.StatusServiceUnavailable || e.Code != "starting_up" {
			t.Errorf("%s while it starts: %v", what, e)
		}
	}
	select {
	case <-d.Ready():
		t.Error("it is ready before it has gone on with everything")
	default:
	}
	close(held)
	awaitReady(t, d)
	if _, err := c.Get(t.Context(), id); err != nil {
		t.Error(err)
	}
	if res, err := c.Exec(t.Context(), id, client.Program{Code: "echo it goes on"}); err != nil || string(res.Stdout) != "it goes on\n" {
		t.Errorf("%q, %v", res.Stdout, err)
	}
	await(t, "the pool", func() bool { s, err := c.Pool(t.Context()); return err == nil && s[0].Ready == 1 })
	now := launcher.Running()
	slices.Sort(vmms)
	slices.Sort(now)
	if !slices.Equal(now, vmms) {
		t.Errorf("VMMs %v became %v", vmms, now)
	}
	end()
	if pids := launcher.Running(); len(pids) > 0 {
		t.Errorf("VMMs left running: %v", pids)
	}
	for _, dir := range []string{cfg.RunDir.Sandboxes(), cfg.RunDir.VMs()} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("records left: %v, %v", entries, err)
		}
	}
}

// A microVM that a sandbox had is never another one's, also if the sandbox's
// record is lost: the pool that it came from does not take it back.
func TestUsedMicroVMIsNoSpare(t *testing.T) {
	for _, from := range []string{"pool", "cold-boot"} {
		t.Run(from, func(t *testing.T) {
			cfg := fakeConfig(t)
			cfg.OnExit, cfg.Templates = Keep, false
			cfg.Pool = map[string]pool.Bounds{"shell": {Min: 1, Max: 2}}
			launcher := cfg.Launcher.(*fctest.Launcher)
			d, end := runUntil(t, cfg)
			awaitReady(t, d)
			c := client.New(d.Addr())
			full := func() bool { s, err := c.Pool(t.Context()); return err == nil && s[0].Ready == s[0].Target }
			await(t, "the pool", full)
			id, err := c.Create(t.Context(), "shell", client.WithBootPath(from))
			if err != nil {
				t.Fatal(err)
			}
			in, err := c.Inspect(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			await(t, "the pool", full)
			end()
			if err := os.Remove(filepath.Join(cfg.RunDir.Sandboxes(), id+".json")); err != nil {
				t.Fatal(err)
			}
			cfg.OnExit = Stop
			d, end = runUntil(t, cfg)
			defer end()
			awaitReady(t, d)
			await(t, "the end of the microVM", func() bool { return !slices.Contains(launcher.Running(), in.Jail.PID) })
		})
	}
}

// A daemon that is asked to end refuses what is new at once, finishes what is
// under way, and leaves all of it to the next one.
func TestDrain(t *testing.T) {
	const n = 5
	cfg := fakeConfig(t)
	cfg.OnExit, cfg.Templates, cfg.Faults = Keep, false, &fault.Set{}
	cfg.Capacity = engine.Capacity{Sandboxes: 100, MemoryMiB: 1 << 20, VCPUs: 100}
	d, end := runUntil(t, cfg)
	awaitReady(t, d)
	c := client.New(d.Addr())
	first, err := c.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	arrived, goOn := make(chan struct{}, n), make(chan struct{})
	cfg.Faults.Do(engine.FaultReady, func() error {
		arrived <- struct{}{}
		<-goOn
		return nil
	})
	results := make(chan error, 2*n)
	for range n {
		go func() {
			_, err := c.Create(t.Context(), "shell")
			results <- err
		}()
		go func() {
			res, err := c.Exec(t.Context(), first, client.Program{Code: "sleep 1; exit 7"})
			if err == nil && res.ExitCode != 7 {
				err = fmt.Errorf("status %d", res.ExitCode)
			}
			results <- err
		}()
	}
	for range n {
		<-arrived
	}
	ended := make(chan struct{})
	go func() { defer close(ended); end() }()
	await(t, "the refusal", func() bool {
		e, ok := errors.AsType[*client.Error](c.Ready(t.Context()))
		return ok && e.Code == "shutting_down"
	})
	began := time.Now()
	_, err = c.Create(t.Context(), "shell")
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusServiceUnavailable || e.Code != "shutting_down" {
		t.Errorf("a create while it drains: %v", err)
	}
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Errorf("its answer took %v", took)
	}
	select {
	case <-ended:
		t.Error("it ended before what was under way was done")
	default:
	}
	close(goOn)
	for range 2 * n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	<-ended

	cfg.OnExit, cfg.Faults = Stop, nil
	d, end = runUntil(t, cfg)
	defer end()
	awaitReady(t, d)
	if list, err := client.New(d.Addr()).List(t.Context()); err != nil || len(list) != n+1 {
		t.Errorf("the next daemon has %d sandboxes, want %d: %v", len(list), n+1, err)
	}
}
