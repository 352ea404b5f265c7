// Package server is the agent's side of the guest protocol: it serves the
// operations of docs/PROTOCOL.md on connections from the host.
//
// One connection is one yamux session, and each stream in it is one operation
// with a goroutine of its own. What an operation started does not outlive its
// stream, except for programs that have an id, which can be asked for by it, and
// what a program left running in the background. The server trusts the host; it is the host that must not trust what comes from here.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/execs"
	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/reaper"
	"github.com/emberd/emberd/internal/guest/warm"
)

const (
	// requestTimeout is how long a new stream may take to say what it wants.
	requestTimeout = 30 * time.Second
	// writeTimeout is how long the connection may take no byte at all.
	writeTimeout = 30 * time.Second
	// closeTimeout is how long a stream that was closed here waits for the host
	// to close it too.
	closeTimeout = 30 * time.Second
	// backlog is how many streams may wait to be accepted.
	backlog = 64
	// maxErrorText keeps errors well inside a message frame.
	maxErrorText = 1 << 10
)

// Config is what a server needs to know.
type Config struct {
	// Interpreter runs the code of an exec; one without a path refuses code.
	Interpreter proc.Interpreter
	// BuildID is told in Hello.
	BuildID string
	// Reaper starts the programs. Its Run is the caller's to call. When nil the
	// server makes one for its own children.
	Reaper *reaper.Reaper
	// Arm gives the VM an identity of its own. It is called while no operation
	// of a program's runs, and once it has failed, none will. When nil the VM
	// cannot be armed.
	Arm func(*agentv1.Arm) error
	// Recipe is how the interpreter is started ahead of code; the zero value
	// means that it is not.
	Recipe warm.Recipe
	// CgroupRoot is the control group, of cgroup v2, under which each program
	// has its own; empty if there is none.
	CgroupRoot string
	// FilesFull tells whether files have no room left. When nil nobody is told.
	FilesFull func() bool
	// Memory is how much may be kept of what programs with an id write, and of
	// input that they have not read, in bytes; 0 means 8 MiB.
	Memory int
	Log    *slog.Logger
}

// Server serves operations. Any number of connections may be served at once.
type Server struct {
	cfg   Config
	procs *proc.Runner
	ahead *warm.Interpreter // nil if there is none
	gate  gate
	// secret is what the VM was armed with, nil before.
	secret atomic.Pointer[[]byte]
	execs  *execs.Registry
	feeds  *allowance

	// ctx is that of programs which outlive their streams, and Close ends it.
	ctx      context.Context
	cancel   context.CancelFunc
	programs sync.WaitGroup

	mu   sync.Mutex
	byID map[string]*program // those with an id that run
}

// New returns a server.
func New(cfg Config) *Server {
	if cfg.Reaper == nil {
		cfg.Reaper = reaper.New()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Memory == 0 {
		cfg.Memory = outputMemory
	}
	// A quarter is for input, and at least one piece of it.
	feeds := max(cfg.Memory/4, agentv1.MaxFeed)
	s := &Server{
		cfg: cfg, procs: proc.New(cfg.Reaper, cfg.CgroupRoot),
		execs: execs.New(cfg.Memory - feeds), feeds: new(allowance), byID: make(map[string]*program),
	}
	s.feeds.give(feeds)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if cfg.Recipe.Kind != "" {
		s.ahead = warm.New(warm.Config{
			Recipe: cfg.Recipe, Interpreter: cfg.Interpreter.Path, Runner: s.procs, Reaper: cfg.Reaper, Log: cfg.Log,
		})
	}
	return s
}

// Close ends the programs that outlived their streams and what was started ahead
// of others, and releases what background processes of finished execs hold here.
func (s *Server) Close() {
	s.cancel()
	s.programs.Wait()
	if s.ahead != nil {
		s.ahead.Close()
	}
	s.procs.Close()
}

// Serve serves every connection that l accepts until ctx ends, and returns when
// all of them have ended. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		conns.Go(func() {
			if err := s.ServeConn(ctx, conn); err != nil {
				s.cfg.Log.Debug("connection ended", "err", err)
			}
		})
	}
}

// ServeConn serves one connection until it breaks or ctx ends, and closes it.
// Programs without an id that still run for it are killed. A host that goes away is no error.
func (s *Server) ServeConn(ctx context.Context, conn io.ReadWriteCloser) error {
	wire := agentv1.Gather(conn)
	session, err := yamux.Server(wire, &yamux.Config{
		AcceptBacklog:          backlog,
		KeepAliveInterval:      time.Minute, // must be set even though it is off
		ConnectionWriteTimeout: writeTimeout,
		MaxStreamWindowSize:    256 << 10,
		StreamCloseTimeout:     closeTimeout,
		LogOutput:              io.Discard,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("start session: %w", err), conn.Close())
	}
	var streams sync.WaitGroup
	defer streams.Wait()
	defer func() { _ = session.Close() }()
	for {
		stream, err := session.AcceptStreamWithContext(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown):
			return nil
		default:
			return fmt.Errorf("session: %w", err)
		}
		last := func() { wire.Last(stream.StreamID()) }
		streams.Go(func() { s.serveStream(ctx, stream, last) })
	}
}

// serveStream carries out one operation. It calls last before it writes what is
// followed by the stream's end.
func (s *Server) serveStream(ctx context.Context, stream net.Conn, last func()) {
	defer func() { _ = stream.Close() }()
	w := agentv1.NewFrameWriter(stream)
	if err := s.dispatch(ctx, stream, w, last); err != nil {
		// The host may be gone; then nobody is left to tell.
		last()
		m := &agentv1.Error{Message: text(err)}
		m.Code, m.First = code(err)
		_ = w.WriteMessage(agentv1.FrameError, m)
	}
}

func (s *Server) dispatch(ctx context.Context, stream net.Conn, w *agentv1.FrameWriter, last func()) error {
	req, err := readRequest(stream)
	if err != nil {
		return err
	}
	switch op := req.GetOp().(type) {
	case *agentv1.Request_Hello:
		proof, err := s.prove(op.Hello.GetChallenge())
		if err != nil {
			return err
		}
		last()
		return w.WriteMessage(agentv1.FrameHello, &agentv1.HelloReply{
			ProtocolVersion: agentv1.ProtocolVersion,
			BuildId:         s.cfg.BuildID,
			Interpreter:     s.cfg.Interpreter.Path,
			Proof:           proof,
		})
	case *agentv1.Request_Warm:
		if err := s.warm(ctx); err != nil {
			return fmt.Errorf("warm up: %w", err)
		}
		last()
		return w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
	case *agentv1.Request_Arm:
		if err := s.arm(op.Arm); err != nil {
			return fmt.Errorf("arm: %w", err)
		}
		last()
		err := w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
		_ = stream.Close()
		s.prepare() // behind the answer
		return err
	case *agentv1.Request_ListExecs:
		last()
		return s.listExecs(w, op.ListExecs)
	case *agentv1.Request_AwaitExec:
		return s.awaitExec(ctx, stream, w, last, op.AwaitExec)
	case *agentv1.Request_ReadExec:
		return s.readExec(ctx, stream, w, op.ReadExec)
	case *agentv1.Request_FeedExec:
		last()
		return s.feedExec(w, op.FeedExec)
	case *agentv1.Request_SignalExec:
		last()
		return s.signalExec(ctx, w, op.SignalExec)
	}
	return s.enter(ctx, stream, w, last, req)
}

// enter carries out an operation for which the VM has to be in order.
func (s *Server) enter(ctx context.Context, stream net.Conn, w *agentv1.FrameWriter, last func(), req *agentv1.Request) error {
	if err := s.gate.enter(); err != nil {
		return err
	}
	defer s.gate.leave()
	switch op := req.GetOp().(type) {
	case *agentv1.Request_Exec:
		err := s.exec(ctx, &starter{stream: stream, w: w, last: last}, op.Exec)
		if op.Exec.GetId() == "" && err == nil {
			// While the program runs and its end is told, nothing else is done.
			_ = stream.Close()
			s.prepare()
		}
		return err
	case *agentv1.Request_WriteFile:
		return writeFile(stream, w, op.WriteFile)
	case *agentv1.Request_Dial:
		return dial(ctx, stream, w, op.Dial)
	}
	return errors.New("unknown operation")
}

// prepare has an interpreter started for the next program.
func (s *Server) prepare() {
	if s.ahead != nil {
		s.ahead.Prepare()
	}
}

func (s *Server) warm(ctx context.Context) error {
	if s.ahead == nil {
		return nil
	}
	return s.ahead.Wait(ctx)
}

func (s *Server) arm(id *agentv1.Arm) error {
	if s.cfg.Arm == nil {
		return errors.New("this VM cannot be armed")
	}
	return s.gate.arm(func() error {
		if n := len(id.GetSecret()); n != 0 && n != agentv1.SecretSize {
			return fmt.Errorf("a secret of %d bytes", n)
		}
		if err := s.cfg.Arm(id); err != nil {
			return err
		}
		secret := id.GetSecret()
		s.secret.Store(&secret)
		if s.ahead != nil {
			s.ahead.Expire()
		}
		return nil
	})
}

// prove answers a challenge. Without one, and without a secret, there is nothing
// to say.
func (s *Server) prove(challenge []byte) ([]byte, error) {
	secret := s.secret.Load()
	if len(challenge) == 0 || secret == nil || len(*secret) == 0 {
		return nil, nil
	}
	if n := len(challenge); n < agentv1.MinChallenge || n > agentv1.MaxChallenge {
		return nil, fmt.Errorf("a challenge of %d bytes", n)
	}
	return agentv1.Prove(*secret, challenge), nil
}

func readRequest(stream net.Conn) (*agentv1.Request, error) {
	if err := stream.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return nil, err
	}
	_, payload, err := agentv1.NewFrameReader(stream, agentv1.FrameRequest).Next()
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	req := new(agentv1.Request)
	if err := proto.Unmarshal(payload, req); err != nil {
		return nil, fmt.Errorf("decode request: %w", err)
	}
	return req, stream.SetReadDeadline(time.Time{})
}

// text is err in a form that a message can carry.
func text(err error) string {
	s := err.Error()
	return strings.ToValidUTF8(s[:min(len(s), maxErrorText)], "\uFFFD")
}
