package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/agent"
)

// Where things are inside the machine.
const (
	guestInit   = "/bin/emberd-init"
	guestDaemon = "/bin/emberd"
	// guestAPI is where emberd listens when it is told nothing.
	guestAPI = "127.0.0.1:7777"
)

// restartDelay keeps a daemon that ends at once from being restarted in a loop.
const restartDelay = time.Second

// apiPoll is how often a starting emberd is asked whether it is ready.
const apiPoll = 100 * time.Millisecond

// startDaemon starts emberd in the machine and returns when its API answers.
// From then on an emberd that ends is started again, until life ends or, because
// the machine is to be stopped, stop does.
func (s *supervisor) startDaemon(ctx, stop, life context.Context, running *sync.WaitGroup) error {
	out, err := openLog(s.Machine.DaemonLog(), maxLog)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	running.Go(func() {
		defer func() { _ = out.Close() }()
		for {
			err := s.runDaemon(life, out)
			if life.Err() != nil || stop.Err() != nil {
				return
			}
			s.log.Error("emberd ended", "machine", s.Machine.Name, "err", err)
			s.update(func(rec *record) { rec.DaemonRestarts++; rec.Reason = err.Error() })
			select {
			case ended <- err:
			default: // It is up, and nobody waits for the first end.
			}
			select {
			case <-life.Done():
				return
			case <-time.After(restartDelay):
			}
		}
	})
	ctx, cancel := context.WithTimeoutCause(ctx, apiTimeout, fmt.Errorf("emberd did not answer within %v", apiTimeout))
	defer cancel()
	tick := time.NewTicker(apiPoll)
	defer tick.Stop()
	for {
		if s.healthy(ctx) {
			return nil
		}
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// runDaemon runs emberd in the machine and says how it ended, which it is not
// meant to.
func (s *supervisor) runDaemon(ctx context.Context, out io.Writer) error {
	// Sandboxes end with the machine in any case.
	argv := []string{guestDaemon, "--on-exit", "stop"}
	for _, host := range forwardedHosts(s.Listen) {
		argv = append(argv, "--allow-host", host)
	}
	exit, err := s.session.Exec(ctx, agent.Command{Argv: argv}, agent.Stdio{Stdout: out, Stderr: out})
	switch {
	case err != nil:
		return fmt.Errorf("run emberd: %w", err)
	case exit.StartError != "":
		return fmt.Errorf("run emberd: %s", exit.StartError)
	default:
		return fmt.Errorf("emberd ended with status %d", exit.Code)
	}
}

// forwardedHosts returns what clients of the address on this host send as their
// Host header: emberd in the machine knows only its own port.
func forwardedHosts(listen string) []string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil
	}
	var out []string
	for _, name := range []string{"localhost", "127.0.0.1", "::1", host} {
		out = append(out, net.JoinHostPort(name, port))
	}
	return out
}

// healthy reports whether emberd answers.
func (s *supervisor) healthy(ctx context.Context) bool {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dialAPI(ctx) },
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+guestAPI+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
}

// dialAPI connects to emberd's API.
func (s *supervisor) dialAPI(ctx context.Context) (net.Conn, error) {
	return s.session.Dial(ctx, "tcp", guestAPI)
}
