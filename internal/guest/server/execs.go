package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/execs"
)

// errBadID refuses a name that the host does not give.
var errBadID = errors.New("an id is ex_ and 12 hex digits")

// keep registers a program that is about to be started.
func (s *Server) keep(p *program) (*execs.Exec, error) {
	id := p.req.GetId()
	if hex, ok := strings.CutPrefix(id, "ex_"); !ok || len(hex) != 12 || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil, errBadID
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept, err := s.execs.Add(id, string(p.req.GetDigest()), p.cmd.Timeout)
	if err != nil {
		return nil, err
	}
	s.byID[id] = p
	return kept, nil
}

// release forgets what only a program that runs has.
func (s *Server) release(p *program) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, p.kept.ID)
}

// running returns the program called id, which has not ended.
func (s *Server) running(id string) (*program, error) {
	if _, err := s.execs.Get(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.byID[id]; p != nil {
		return p, nil
	}
	return nil, errNoInput
}

func (s *Server) listExecs(w *agentv1.FrameWriter, req *agentv1.ListExecs) error {
	all := s.execs.List()
	if id := req.GetId(); id != "" {
		e, err := s.execs.Get(id)
		if digest := req.GetDigest(); len(digest) > 0 {
			e, err = s.execs.GetOnce(id, string(digest))
		}
		if err != nil {
			return err
		}
		all = []*execs.Exec{e}
	}
	list := &agentv1.ExecList{}
	for _, e := range all[max(0, len(all)-agentv1.MaxExecs):] {
		list.Execs = append(list.Execs, s.describe(e))
	}
	return w.WriteMessage(agentv1.FrameExecs, list)
}

func (s *Server) describe(e *execs.Exec) *agentv1.ExecState {
	state := &agentv1.ExecState{
		Id: e.ID, TimeoutMs: uint64(e.Timeout.Milliseconds()),
		AgeUs: uint64(e.Age().Microseconds()),
	}
	s.mu.Lock()
	if p := s.byID[e.ID]; p != nil {
		state.StdinBytes, state.StdinOpen = p.stdin.state()
	}
	s.mu.Unlock()
	// The end is looked at before the output, which does not grow after it.
	if exit, given := e.Exit(); exit != nil {
		state.Exit, state.StdinBytes, state.StdinOpen = exit, given, false
	}
	state.Stdout, state.Stderr = span(e.Stdout), span(e.Stderr)
	return state
}

func span(s *execs.Stream) *agentv1.Span {
	first, end := s.Span()
	return &agentv1.Span{First: first, End: end}
}

func (s *Server) awaitExec(ctx context.Context, stream net.Conn, w *agentv1.FrameWriter, last func(), req *agentv1.AwaitExec) error {
	e, err := s.execs.Get(req.GetId())
	if err != nil {
		return err
	}
	return whileOpen(ctx, stream, func(ctx context.Context) error {
		select {
		case <-e.Done():
			exit, _ := e.Exit()
			if exit == nil { // the agent is ending
				return execs.ErrNotFound
			}
			last()
			return w.WriteMessage(agentv1.FrameExit, exit)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// readExec sends output of a program.
func (s *Server) readExec(ctx context.Context, stream net.Conn, w *agentv1.FrameWriter, req *agentv1.ReadExec) error {
	e, err := s.execs.Get(req.GetId())
	if err != nil {
		return err
	}
	from := e.Stdout
	if req.GetStream() == agentv1.ReadExec_STDERR {
		from = e.Stderr
	}
	return whileOpen(ctx, stream, func(ctx context.Context) error {
		return send(ctx, w, from, req.GetOffset(), req.GetFollow())
	})
}

func send(ctx context.Context, w *agentv1.FrameWriter, from *execs.Stream, at uint64, follow bool) error {
	_, until := from.Span()
	buf := make([]byte, agentv1.MaxData/2)
	for {
		// Without following, what is there now is the end: a program that writes
		// faster than the host reads would never be through.
		p := buf
		if !follow && at <= until {
			p = buf[:min(uint64(len(buf)), until-at)]
		}
		if len(p) == 0 {
			return w.Write(agentv1.FrameEnd, nil)
		}
		n, more, err := from.Read(p, at)
		switch {
		case errors.Is(err, io.EOF):
			return w.Write(agentv1.FrameEnd, nil)
		case err != nil:
			return err
		case n > 0:
			if err := w.Write(agentv1.FrameData, p[:n]); err != nil {
				return err
			}
			at += uint64(n)
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// whileOpen calls f with a context that ends when the host closes the stream,
// on which it has nothing more to say.
func whileOpen(ctx context.Context, stream net.Conn, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{stream})
		cancel(errHostGone)
	})
	defer reader.Wait()
	defer func() { _ = stream.SetReadDeadline(aLongTimeAgo) }()
	// A write that nobody takes is not waited for.
	defer context.AfterFunc(ctx, func() { _ = stream.SetDeadline(aLongTimeAgo) })()
	return f(ctx)
}

func (s *Server) feedExec(w *agentv1.FrameWriter, req *agentv1.FeedExec) error {
	p, err := s.running(req.GetId())
	if err != nil {
		return err
	}
	if len(req.GetData()) > agentv1.MaxFeed {
		return fmt.Errorf("%d bytes of input are too many", len(req.GetData()))
	}
	if err := p.stdin.feed(req.GetData(), req.GetEnd()); err != nil {
		return err
	}
	return w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
}

// signalExec sends SIGKILL to all that a program started, and any other signal to
// the program's process group, as a terminal would.
func (s *Server) signalExec(ctx context.Context, w *agentv1.FrameWriter, req *agentv1.SignalExec) error {
	p, err := s.running(req.GetId())
	if err != nil {
		return err
	}
	sig := syscall.Signal(req.GetSignal())
	if sig < 1 || sig > maxSignal {
		return fmt.Errorf("%d is no signal", sig)
	}
	select {
	case <-p.started:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if p.process == nil || !p.process.Signal(sig) {
		return errNoInput
	}
	return w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
}

// maxSignal is the highest signal number of Linux.
const maxSignal = 64

// code is what the host is told of err beside its text.
func code(err error) (agentv1.Error_Code, uint64) {
	if e, ok := errors.AsType[*execs.GoneError](err); ok {
		return agentv1.Error_GONE, e.First
	}
	for _, known := range []struct {
		err  error
		code agentv1.Error_Code
	}{
		{execs.ErrNotFound, agentv1.Error_NOT_FOUND},
		{execs.ErrBeyond, agentv1.Error_BEYOND},
		{errNoInput, agentv1.Error_ENDED},
		{errFull, agentv1.Error_FULL},
		{execs.ErrExists, agentv1.Error_EXISTS},
		{execs.ErrDiffers, agentv1.Error_DIFFERS},
		{execs.ErrMany, agentv1.Error_MANY},
	} {
		if errors.Is(err, known.err) {
			return known.code, 0
		}
	}
	return agentv1.Error_OTHER, 0
}

// outputMemory is what output and input may take where nobody says so.
const outputMemory = 8 << 20
