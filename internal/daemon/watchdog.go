package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/store"
)

// beatsPerWatchdog is how many times the daemon looks whether it still works
// within the time that the service manager grants it between two signs of life.
const beatsPerWatchdog = 3

// tellReady tells the service manager that the daemon serves, and from then on
// that it still does, for as long as that is true and until ctx ends. A manager
// that hears nothing starts the daemon anew. The caller calls stop.
func (d *Daemon) tellReady(ctx context.Context) (stop func()) {
	d.tell("READY=1", "STATUS=serving "+strings.Join(d.listeners.addrs(), ", "))
	within := d.cfg.Manager.Watchdog()
	if within <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var beating sync.WaitGroup
	beating.Go(func() {
		tick := time.NewTicker(within / beatsPerWatchdog)
		defer tick.Stop()
		for {
			d.beat(ctx, within/beatsPerWatchdog)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() { cancel(); beating.Wait() }
}

// tellStopping tells the service manager that the daemon is about to end.
func (d *Daemon) tellStopping() { d.tell("STOPPING=1", "WATCHDOG=1", "STATUS=ending") }

// beat gives a sign of life if there is reason to.
func (d *Daemon) beat(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := d.selfCheck(ctx); err == nil {
		d.tell("WATCHDOG=1")
	} else if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		d.log.Error("emberd does not work as it should, and gives the service manager no sign of life", "err", err)
	}
}

// selfCheck does in small what a request needs: it writes a record, makes sure
// that no other daemon may, and asks the API for the sandboxes. It asks by the
// Unix socket, where other hosts cannot take up every connection; without one
// the API is not asked.
func (d *Daemon) selfCheck(ctx context.Context) error {
	if err := store.Probe(d.cfg.RunDir); err != nil {
		return err
	}
	if d.cfg.Socket == "" {
		return nil
	}
	once := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.cfg.Socket)
	}}
	if _, err := client.New("localhost", client.WithHTTPClient(&http.Client{Transport: once})).List(ctx); err != nil {
		return fmt.Errorf("ask the API: %w", err)
	}
	return nil
}

func (d *Daemon) tell(states ...string) {
	if err := d.cfg.Manager.Notify(states...); err != nil {
		d.log.Warn("the service manager was not told", "states", states, "err", err)
	}
}
