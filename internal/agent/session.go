// Package agent is the host's side of the guest protocol: one [Session] per VM,
// and the operations that the agent in the VM carries out.
//
// The guest is hostile. Every length, count and wait has a bound on this side,
// the guest can open no stream and ask for no reply, and an operation either
// has a result that the protocol allows or an error: an exit code is never
// made up. The package knows no sandboxes and decides no policy.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

const (
	// writeTimeout is how long a guest may leave the connection unread before
	// it counts as broken.
	writeTimeout = 10 * time.Second
	// openTimeout is how long it may take to accept a stream.
	openTimeout = 30 * time.Second
	// closeTimeout is how long a stream that was closed here may go on taking
	// memory because the guest has not closed it too.
	closeTimeout = 30 * time.Second
	// backlog is how many streams may be waiting for the guest to accept them.
	backlog = 64
	// windowSize is how much of one stream the guest may send ahead.
	windowSize = 256 << 10
)

// ErrVersion says that the guest speaks another version of the protocol.
var ErrVersion = errors.New("protocol version not supported")

// Session is a connection to the agent of one VM. Any number of goroutines may
// use it.
type Session struct {
	mux   *yamux.Session
	hello *agentv1.HelloReply

	mu     sync.Mutex
	closed bool
	// opening counts what goes on behind the back of callers who gave up.
	opening sync.WaitGroup
}

// Open begins a session on conn and waits for the agent to say hello. It owns
// conn, and has closed it when it returns an error.
func Open(ctx context.Context, conn net.Conn, log *slog.Logger) (*Session, error) {
	mux, err := yamux.Client(agentv1.Gather(&fence{Conn: conn}), &yamux.Config{
		AcceptBacklog:     backlog,
		KeepAliveInterval: time.Minute, // must be set even though it is off
		// The fence ends the session first.
		ConnectionWriteTimeout: writeTimeout + 5*time.Second,
		MaxStreamWindowSize:    windowSize,
		StreamOpenTimeout:      openTimeout,
		StreamCloseTimeout:     closeTimeout,
		Logger:                 muxLog{log},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start session: %w", err), conn.Close())
	}
	s := &Session{mux: mux}
	// Nothing but the end of the connection unblocks a guest that does not read.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	s.hello, err = s.sayHello(ctx)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("greet the agent: %w", err), s.Close())
	}
	return s, nil
}

// Hello is what the agent said about itself. Nobody may change it.
func (s *Session) Hello() *agentv1.HelloReply { return s.hello }

// Done is closed when the connection has ended, for whatever reason. Operations
// that are under way fail then.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Close ends the connection and every operation on it. The agent kills the
// programs without an id that still run for it.
func (s *Session) Close() error {
	err := s.mux.Close()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.opening.Wait()
	return err
}

// behind runs f in the background, unless the session is closed. Close waits for
// it.
func (s *Session) behind(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.opening.Go(f)
	}
	return !s.closed
}

// OpenStream opens a stream for one operation, which the functions of this
// package carry out on it; the caller closes it.
func (s *Session) OpenStream(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open stream: %w", context.Cause(ctx))
	}
	type opened struct {
		stream net.Conn
		err    error
	}
	// Opening waits for the guest and cannot be interrupted, but it ends after
	// openTimeout, or with the session.
	result := make(chan opened, 1)
	if !s.behind(func() {
		stream, err := s.mux.Open()
		result <- opened{stream, err}
	}) {
		return nil, fmt.Errorf("open stream: %w", yamux.ErrSessionShutdown)
	}
	select {
	case o := <-result:
		if o.err != nil {
			return nil, fmt.Errorf("open stream: %w", o.err)
		}
		return o.stream, nil
	case <-ctx.Done():
		s.behind(func() { // a session that is closed has closed it
			if o := <-result; o.err == nil {
				_ = o.stream.Close()
			}
		})
		return nil, fmt.Errorf("open stream: %w", context.Cause(ctx))
	}
}

// Ping asks the agent for a sign of life and returns when it has answered.
func (s *Session) Ping(ctx context.Context) error {
	if _, err := s.sayHello(ctx); err != nil {
		return fmt.Errorf("ping the agent: %w", err)
	}
	return nil
}

// Exec runs cmd, as [Exec] does.
func (s *Session) Exec(ctx context.Context, cmd Command, stdio Stdio) (Exit, error) {
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return Exit{}, err
	}
	return Exec(ctx, stream, cmd, stdio)
}

// Dial connects to an address inside the VM, as [Dial] does.
func (s *Session) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return Dial(ctx, stream, network, address)
}

func (s *Session) sayHello(ctx context.Context) (*agentv1.HelloReply, error) {
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return hello(ctx, stream, nil)
}

// muxLog shows what yamux has to say to a developer.
type muxLog struct{ log *slog.Logger }

func (l muxLog) Print(v ...any)   { l.Printf("%s", fmt.Sprint(v...)) }
func (l muxLog) Println(v ...any) { l.Print(v...) }

func (l muxLog) Printf(format string, v ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("agent connection", "yamux", fmt.Sprintf(format, v...))
	}
}

// WriteFile creates or replaces a file in the VM, as [WriteFile] does.
func (s *Session) WriteFile(ctx context.Context, path string, mode fs.FileMode, r io.Reader) error {
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return err
	}
	return WriteFile(ctx, stream, path, mode, r)
}
