package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/fault"
)

// testDaemon is the real daemon over fake VMMs.
type testDaemon struct {
	addr     string
	client   *client.Client
	launcher *fctest.Launcher
	run      paths.Run
	ready    gate
}

// startDaemon starts a daemon that ends with the script. Nothing may be left of
// its sandboxes then, whatever the script did.
func startDaemon(env *testscript.Env, data paths.Data) (*testDaemon, error) {
	dir, err := os.MkdirTemp("", "fc") // short: it holds sockets
	if err != nil {
		return nil, err
	}
	env.Defer(func() { _ = os.RemoveAll(dir) })
	d := &testDaemon{launcher: &fctest.Launcher{Dir: dir}, run: paths.Run(filepath.Join(dir, "run"))}
	cfg := daemon.NewConfig()
	cfg.Listen, cfg.OnExit = "127.0.0.1:0", daemon.Stop
	cfg.DataDir, cfg.RunDir = data, d.run
	cfg.Init = data.Vmlinux() // any file: the fake runs none
	cfg.Launcher = d.launcher
	cfg.Networks = &fctest.Networks{Launcher: d.launcher}
	cfg.Templates = false // the daemons of all scripts share a data directory
	cfg.Faults = &fault.Set{}
	cfg.Faults.Do(engine.FaultReady, d.ready.pass)

	ctx, cancel := context.WithCancel(context.Background())
	real, err := daemon.New(ctx, cfg)
	if err != nil {
		cancel()
		return nil, err
	}
	d.addr = real.Addr()
	d.client = client.New(d.addr)
	ended := make(chan error, 1)
	go func() { ended <- real.Run(ctx) }()
	env.Defer(func() {
		d.ready.release()
		cancel()
		if err := <-ended; err != nil {
			env.T().Fatal(err)
		}
		if left, err := d.left(); err != nil || left != 0 {
			env.T().Fatal(fmt.Sprintf("%d sandboxes outlived the daemon, %v", left, err))
		}
	})
	return d, nil
}

// left returns of how many sandboxes there is something: a VMM or a record.
func (d *testDaemon) left() (int, error) {
	records, err := os.ReadDir(d.run.Sandboxes())
	return max(len(records), len(d.launcher.Running())), err
}

// count returns how many sandboxes there are of a kind that a script can await.
func (d *testDaemon) count(kind string) (int, error) {
	if kind == "ready" {
		return d.ready.count(), nil
	}
	list, err := d.client.List(context.Background())
	if err != nil {
		return 0, err
	}
	if kind == "booting" {
		return len(d.launcher.Running()) - len(list), nil
	}
	left, err := d.left()
	return max(len(list), left), err
}

// gate stops those who pass while it is held.
type gate struct {
	mu      sync.Mutex
	held    chan struct{}
	waiting int
}

func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = make(chan struct{})
}

// release lets those who wait go on. It may be called at any time.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held != nil {
		close(g.held)
	}
	g.held, g.waiting = nil, 0
}

func (g *gate) pass() error {
	g.mu.Lock()
	held := g.held
	if held != nil {
		g.waiting++
	}
	g.mu.Unlock()
	if held != nil {
		<-held
	}
	return nil
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}
