package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/proc"
)

// errHostGone ends a program whose stream ended before it did.
var errHostGone = errors.New("the host closed the stream")

// exec runs one program and reports how it ended. The stream is read all the
// time, so that its end is noticed whatever the program does.
func (s *Server) exec(ctx context.Context, stream net.Conn, w *agentv1.FrameWriter, last func(), req *agentv1.Exec) error {
	cmd, err := s.command(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stdin := newInput(w)
	var reader sync.WaitGroup
	reader.Go(func() { cancel(stdin.receive(stream)) })
	defer reader.Wait()
	// Unblocks the reader, and writers of output that nobody takes any more.
	defer context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })()
	defer cancel(nil)

	program, ahead, err := s.start(ctx, req, cmd)
	if err != nil {
		_ = stdin.Close()
		if e, ok := errors.AsType[*proc.StartError](err); ok {
			last()
			return w.WriteMessage(agentv1.FrameExit, &agentv1.Exit{StartError: text(e), Hit: s.hit(e.Hit, false)})
		}
		return err
	}
	result, err := s.procs.Attend(ctx, program, cmd.Timeout, proc.Stdio{
		Stdin:  stdin,
		Stdout: frameOutput{w, agentv1.FrameStdout},
		Stderr: frameOutput{w, agentv1.FrameStderr},
		Ended:  last,
	})
	if err != nil {
		return err
	}
	last()
	return w.WriteMessage(agentv1.FrameExit, &agentv1.Exit{
		Code:       int32(result.Code),
		Signal:     int32(result.Signal),
		TimedOut:   result.TimedOut,
		DurationUs: uint64(result.Duration.Microseconds()),
		Warm:       ahead,
		Hit:        s.hit(result.Hit, result.Code != 0),
	})
}

// hit is what the host is told of the limits that a program ran into, nil if
// there are none. A full disk is no news unless the program failed.
func (s *Server) hit(of proc.Hit, failed bool) *agentv1.LimitsHit {
	full := failed && s.cfg.FilesFull != nil && s.cfg.FilesFull()
	if of == (proc.Hit{}) && !full {
		return nil
	}
	return &agentv1.LimitsHit{Memory: of.Memory, Disk: full, Pids: of.PIDs}
}

// start starts the program of req, which is cmd, or has an interpreter that was
// started ahead take its code.
func (s *Server) start(ctx context.Context, req *agentv1.Exec, cmd proc.Command) (p *proc.Process, ahead bool, err error) {
	if _, isCode := req.GetProgram().(*agentv1.Exec_Code); isCode && s.ahead != nil {
		if p := s.ahead.Take(ctx, req.GetCode()); p != nil {
			return p, true, nil
		}
	}
	p, err = s.procs.Start(cmd)
	return p, false, err
}

func (s *Server) command(req *agentv1.Exec) (proc.Command, error) {
	var cmd proc.Command
	switch p := req.GetProgram().(type) {
	case *agentv1.Exec_Code:
		if s.cfg.Interpreter.Path == "" {
			return cmd, errors.New("no interpreter here")
		}
		cmd = proc.Script(s.cfg.Interpreter, p.Code)
	case *agentv1.Exec_Command:
		c := p.Command
		if len(c.GetArgv()) == 0 {
			return cmd, errors.New("no program named")
		}
		cmd = proc.Command{Argv: c.GetArgv(), Env: c.GetEnv(), Dir: c.GetDir()}
	default:
		return cmd, errors.New("neither code nor a command")
	}
	ms := req.GetTimeoutMs()
	if ms > uint64(maxTimeout/time.Millisecond) {
		return cmd, fmt.Errorf("a time limit of %d ms is too long", ms)
	}
	cmd.Timeout = time.Duration(ms) * time.Millisecond
	return cmd, nil
}

// maxTimeout is what a time limit can be without overflowing.
const maxTimeout = 1<<63 - 1

// frameOutput sends what is written to it as frames of one type. A write is
// never larger than a frame: proc moves less at a time.
type frameOutput struct {
	w *agentv1.FrameWriter
	t agentv1.FrameType
}

func (o frameOutput) Write(p []byte) (int, error) {
	if err := o.w.Write(o.t, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// input is a program's standard input on its way from the stream to the pipe.
// The host may have sent [agentv1.StdinWindow] bytes that were not acknowledged,
// so receiving never waits for the program.
type input struct {
	w *agentv1.FrameWriter

	mu     sync.Mutex
	more   sync.Cond
	buf    bytes.Buffer
	ended  bool // the host ended it
	closed bool // the program needs no more
}

func newInput(w *agentv1.FrameWriter) *input {
	in := &input{w: w}
	in.more.L = &in.mu
	return in
}

// receive takes in what the host sends until the stream ends, and returns why
// that is.
func (in *input) receive(stream io.Reader) error {
	frames := agentv1.NewFrameReader(stream, agentv1.FrameStdin, agentv1.FrameStdinEnd)
	for {
		t, payload, err := frames.Next()
		if errors.Is(err, io.EOF) {
			return errHostGone
		}
		if err != nil {
			return fmt.Errorf("read input: %w", err)
		}
		if err := in.put(t, payload); err != nil {
			return err
		}
	}
}

func (in *input) put(t agentv1.FrameType, payload []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.ended:
		return errors.New("input after its end")
	case in.closed:
		return nil
	case t == agentv1.FrameStdinEnd:
		in.ended = true
	case in.buf.Len()+len(payload) > agentv1.StdinWindow:
		return errors.New("more input than was asked for")
	default:
		in.buf.Write(payload)
	}
	in.more.Signal()
	return nil
}

// Read hands bytes to the program and lets the host send as many more.
func (in *input) Read(p []byte) (int, error) {
	n, err := in.take(p)
	if n > 0 {
		if err := in.w.WriteAck(n); err != nil {
			return n, err
		}
	}
	return n, err
}

func (in *input) take(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.buf.Len() == 0 && !in.ended && !in.closed {
		in.more.Wait()
	}
	if in.closed || in.buf.Len() == 0 {
		return 0, io.EOF
	}
	return in.buf.Read(p)
}

// Close drops what is left and ends a Read that waits.
func (in *input) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.buf = bytes.Buffer{}
	in.more.Signal()
	return nil
}
