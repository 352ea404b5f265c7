package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/execs"
	"github.com/emberd/emberd/internal/guest/proc"
)

// errHostGone ends a program whose stream ended before it did.
var errHostGone = errors.New("the host closed the stream")

// aLongTimeAgo is a deadline that ends reads and writes at once.
var aLongTimeAgo = time.Unix(1, 0)

// program is one exec on its way from its start to its end.
type program struct {
	req   *agentv1.Exec
	cmd   proc.Command
	to    *starter
	stdin *input
	kept  *execs.Exec // nil if it has no id
	// started is closed when the program runs, or never will; process is set
	// before that if it does.
	started chan struct{}
	process *proc.Process
}

// starter is the host that started a program. It is told everything for as long
// as it listens.
type starter struct {
	stream net.Conn
	w      *agentv1.FrameWriter
	last   func()
	// quiet says that it wants no more output, and gone that it wants nothing.
	quiet, gone atomic.Bool
}

// exec runs one program.
func (s *Server) exec(ctx context.Context, to *starter, req *agentv1.Exec) error {
	cmd, err := s.command(req)
	if err != nil {
		return err
	}
	p := &program{req: req, cmd: cmd, to: to, stdin: newInput(s.feeds, to.ack), started: make(chan struct{})}
	p.stdin.leave = to.leave
	if req.GetId() == "" {
		return s.bound(ctx, p)
	}
	if req.GetDetach() {
		p.to.gone.Store(true)
		p.stdin.orphan()
		if err := p.stdin.feed(req.GetStdin(), !req.GetStdinOpen()); err != nil {
			return err
		}
		req.Stdin = nil
	}
	if p.kept, err = s.keep(p); err != nil {
		return errors.Join(err, p.stdin.Close())
	}
	if req.GetDetach() {
		return s.detached(p)
	}
	s.lasting(p)
	return nil
}

// bound runs a program that ends with its stream. The stream is read all the
// time, so that its end is noticed whatever the program does.
func (s *Server) bound(ctx context.Context, p *program) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var reader sync.WaitGroup
	reader.Go(func() { cancel(p.stdin.receive(p.to.stream)) })
	defer reader.Wait()
	// Unblocks the reader, and writers of output that nobody takes any more.
	defer context.AfterFunc(ctx, func() { _ = p.to.stream.SetDeadline(aLongTimeAgo) })()
	defer cancel(nil)
	defer p.abandon()
	return s.run(ctx, p)
}

// abandon gives up what a program that has ended, or never ran, had here.
func (p *program) abandon() {
	if p.process != nil {
		p.process.Abandon()
	}
}

// lasting runs a program that outlives its stream, and returns when either has
// ended. Whoever opens the stream has its output and its end on it until then.
func (s *Server) lasting(p *program) {
	s.goOn(p, func() {
		_ = p.to.stream.SetReadDeadline(aLongTimeAgo) // there is no more input to be read
		_ = p.to.stream.Close()
	})
	_ = p.stdin.receive(p.to.stream)
	p.to.gone.Store(true)
	p.stdin.orphan()
	_ = p.to.stream.SetDeadline(aLongTimeAgo) // ends a write that nobody takes
}

// detached starts a program that nobody listens to, and says so.
func (s *Server) detached(p *program) error {
	s.goOn(p, func() {})
	<-p.started
	p.to.last()
	return p.to.w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
}

// goOn runs a program in the background and then calls after. While the program
// runs and its end is told, nothing else is done.
func (s *Server) goOn(p *program, after func()) {
	s.gate.stay()
	s.programs.Go(func() {
		defer s.gate.leave()
		defer s.prepare()
		defer p.abandon()
		defer after()
		defer s.release(p)
		if err := s.run(s.ctx, p); err != nil {
			s.execs.Forget(p.kept) // the agent is ending, and what it ran with it
		}
	})
}

// run starts a program, attends it, and tells how it ended.
func (s *Server) run(ctx context.Context, p *program) error {
	process, ahead, err := s.start(ctx, p.req, p.cmd)
	p.process = process
	close(p.started)
	if err != nil {
		_ = p.stdin.Close()
		if e, ok := errors.AsType[*proc.StartError](err); ok {
			return p.end(&agentv1.Exit{StartError: text(e), Hit: s.hit(e.Hit, false)})
		}
		return err
	}
	result, err := s.procs.Attend(ctx, process, p.cmd.Timeout, proc.Stdio{
		Stdin:  p.stdin,
		Stdout: p.output(agentv1.FrameStdout),
		Stderr: p.output(agentv1.FrameStderr),
		Ended:  p.to.ended,
	})
	if err != nil {
		return err
	}
	return p.end(&agentv1.Exit{
		Code:       int32(result.Code),
		Signal:     int32(result.Signal),
		TimedOut:   result.TimedOut,
		DurationUs: uint64(result.Duration.Microseconds()),
		Warm:       ahead,
		Hit:        s.hit(result.Hit, result.Code != 0),
	})
}

// end keeps how the program ended and tells the starter, if there is one.
func (p *program) end(exit *agentv1.Exit) error {
	if p.kept == nil {
		p.to.last()
		return p.to.w.WriteMessage(agentv1.FrameExit, exit)
	}
	given, _ := p.stdin.state()
	p.kept.End(exit, given)
	if p.to.gone.Load() {
		return nil
	}
	p.to.last()
	if p.to.w.WriteMessage(agentv1.FrameExit, exit) == nil && !p.to.quiet.Load() {
		p.kept.Told()
	}
	return nil
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
	if req.GetId() == "" && (req.GetDetach() || len(req.GetDigest()) > 0) {
		return cmd, errors.New("a program without an id can neither be detached nor be started once")
	}
	if len(req.GetDigest()) > maxDigest {
		return cmd, fmt.Errorf("a digest of %d bytes is too long", len(req.GetDigest()))
	}
	ms := req.GetTimeoutMs()
	if ms > uint64(maxTimeout/time.Millisecond) {
		return cmd, fmt.Errorf("a time limit of %d ms is too long", ms)
	}
	cmd.Timeout = time.Duration(ms) * time.Millisecond
	return cmd, nil
}

// maxDigest is how long the digest of a request can be, in bytes.
const maxDigest = 64

// maxTimeout is what a time limit can be without overflowing.
const maxTimeout = 1<<63 - 1

// leave has the starter be told of the program's end alone.
func (to *starter) leave() { to.quiet.Store(true) }

// ended says that the program's last output comes next, and its end after it.
func (to *starter) ended() {
	if !to.gone.Load() {
		to.last()
	}
}

// ack lets the starter send n more bytes of input.
func (to *starter) ack(n int) error {
	if to.gone.Load() {
		return nil
	}
	return to.w.WriteAck(n)
}

// output is where one of the program's output streams goes.
func (p *program) output(t agentv1.FrameType) *output {
	o := &output{to: p.to, t: t}
	switch {
	case p.kept == nil:
	case t == agentv1.FrameStdout:
		o.kept = p.kept.Stdout
	default:
		o.kept = p.kept.Stderr
	}
	return o
}

// output sends what is written to it to the starter, as frames of one type, and
// keeps it. A write is never larger than a frame: proc moves less at a time.
type output struct {
	to   *starter
	t    agentv1.FrameType
	kept *execs.Stream // nil if the program has no id
}

// Write fails if nothing is kept and the starter takes no more. What is kept is
// not held up by a starter who is gone.
func (o *output) Write(p []byte) (int, error) {
	if o.kept == nil {
		if err := o.to.w.Write(o.t, p); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	_, _ = o.kept.Write(p)
	if !o.to.quiet.Load() && !o.to.gone.Load() && o.to.w.Write(o.t, p) != nil {
		o.to.gone.Store(true)
	}
	return len(p), nil
}
