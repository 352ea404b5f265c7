// Package agenttest is a guest inside the test's own process: the real agent's
// server without a VM around it, or one that misbehaves.
//
// It runs programs on the host as whoever runs the test, without control
// groups. It is for tests only, and the one place outside a VM that may import
// the guest's code.
package agenttest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/hashicorp/yamux"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/server"
)

// Config is what kind of guest it is. The zero value is a good one whose
// interpreter is /bin/sh.
type Config struct {
	Interpreter string
	BuildID     string
	// Arm, when set, is called with each identity. No other use is made of it: the
	// host that it would change runs the tests.
	Arm func(*agentv1.Arm) error
	// Handle, when set, takes the place of the agent: it is called for each
	// stream that the host opens, and the stream is closed when it returns.
	Handle func(stream net.Conn)
}

// Serve is a guest that listens on l until ctx ends. It closes l.
func Serve(ctx context.Context, l net.Listener, cfg Config) error {
	if cfg.Handle == nil {
		s := cfg.server() //nolint:contextcheck // it ends with Close
		defer s.Close()
		return s.Serve(ctx, l)
	}
	var conns sync.WaitGroup
	defer conns.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		conns.Go(func() { _ = ServeConn(ctx, conn, cfg) })
	}
}

// ServeConn is a guest that serves one connection until it breaks or ctx ends.
// It closes conn.
func ServeConn(ctx context.Context, conn net.Conn, cfg Config) error {
	if cfg.Handle == nil {
		s := cfg.server() //nolint:contextcheck // it ends with Close
		defer s.Close()
		return s.ServeConn(ctx, conn)
	}
	mux := yamux.DefaultConfig()
	mux.EnableKeepAlive, mux.LogOutput = false, io.Discard
	session, err := yamux.Server(conn, mux)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	var streams sync.WaitGroup
	defer streams.Wait()
	defer func() { _ = session.Close() }()
	for {
		stream, err := session.AcceptStreamWithContext(ctx)
		if err != nil {
			return err
		}
		streams.Go(func() {
			defer func() { _ = stream.Close() }()
			cfg.Handle(stream)
		})
	}
}

func (cfg Config) server() *server.Server {
	if cfg.Interpreter == "" {
		cfg.Interpreter = "/bin/sh"
	}
	if cfg.BuildID == "" {
		cfg.BuildID = "agenttest"
	}
	if cfg.Arm == nil {
		cfg.Arm = func(*agentv1.Arm) error { return nil }
	}
	return server.New(server.Config{
		Interpreter: proc.Interpreter{Path: cfg.Interpreter}, BuildID: cfg.BuildID, Arm: cfg.Arm,
	})
}

// Open starts a guest on one end of a pipe and opens a session with it. The
// function it returns ends both.
func Open(ctx context.Context, cfg Config) (*agent.Session, func(), error) {
	host, guest := net.Pipe()
	guestCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var serving sync.WaitGroup
	serving.Go(func() { _ = ServeConn(guestCtx, guest, cfg) })
	end := func() {
		cancel()
		serving.Wait()
	}
	s, err := agent.Open(ctx, host, slog.New(slog.DiscardHandler))
	if err != nil {
		end()
		return nil, nil, err
	}
	return s, func() { _ = s.Close(); end() }, nil
}

// Silent is a guest that takes every request and answers none.
func Silent(stream net.Conn) { _, _ = io.Copy(io.Discard, stream) }

// WrongVersion is a guest of another time.
func WrongVersion(stream net.Conn) {
	_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameHello,
		&agentv1.HelloReply{ProtocolVersion: agentv1.ProtocolVersion + 1})
	Silent(stream)
}

// HelloThen is a guest that says hello properly and then hands each stream to
// handle.
func HelloThen(handle func(stream net.Conn)) func(net.Conn) {
	var mu sync.Mutex
	greeted := false
	return func(stream net.Conn) {
		mu.Lock()
		first := !greeted
		greeted = true
		mu.Unlock()
		if !first {
			handle(stream)
			return
		}
		_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameHello,
			&agentv1.HelloReply{ProtocolVersion: agentv1.ProtocolVersion, BuildId: "agenttest"})
		Silent(stream)
	}
}
