package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/x/printable"
)

// grace is how much longer than a program's limit the host waits to be told how
// the program ended.
const grace = 10 * time.Second

// maxSignal is the highest signal number of Linux.
const maxSignal = 64

// Command is a program to run in the VM.
type Command struct {
	// Code is source text for the VM's interpreter. It is used when Argv is
	// empty, and may hold any bytes but NUL.
	Code string
	// Argv is a program, looked up in the VM's PATH, and its arguments.
	Argv []string
	// Env is added to the agent's default environment; it goes with Argv.
	Env []string
	// Dir is the working directory, the agent's default if empty; it goes with
	// Argv.
	Dir string
	// Timeout is a wall-clock limit; zero means none.
	Timeout time.Duration
	// ID names a program that goes on, under its limit, when nobody listens any
	// more; see [Session.ExecState]. One without ends then.
	ID string
	// Digest, with an ID, is of a request that may come again: no other program is
	// ever started with that ID.
	Digest []byte
}

// Stdio is where a program's input comes from and where its output goes. Nil
// means no input, and output that is dropped.
type Stdio struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Leave, when it is closed, says that nobody wants more output of a program
	// with an id. Its end is waited for as before.
	Leave <-chan struct{}
}

// empty tells whether there is surely no input, which saves a packet.
func (s Stdio) empty() bool {
	known, ok := s.Stdin.(interface{ Len() int })
	return s.Stdin == nil || ok && known.Len() == 0
}

// Exit is how a program ended, as the guest tells it.
type Exit struct {
	// Code is the exit status, 0 to 255, and 128+Signal if a signal ended the
	// program.
	Code, Signal int
	// TimedOut says that the program was killed at its limit.
	TimedOut bool
	// StartError is set if the program could not be started; the rest but Hit is
	// zero.
	StartError string
	// Warm says that the program ran in an interpreter that was started ahead.
	Warm bool
	// Duration is from start to exit, and never longer than the host waited.
	Duration time.Duration
	// Hit is which limits of the VM the program ran into.
	Hit Hit
}

// Hit is which limits of the VM a program, or one that it started, ran into.
type Hit struct {
	Memory, Disk, PIDs bool
}

// Exec runs cmd on stream, which it closes. It returns how the program ended
// once its whole output has been written to stdio. An error means that this is
// not known. When ctx ends, or a writer of stdio fails, a program with an id goes
// on without this caller, and one without is killed with all that it started.
//
// Exec returns when the program has ended even if a Read of Stdin still blocks.
// That Read is left behind, and what it returns is dropped.
func Exec(ctx context.Context, stream net.Conn, cmd Command, stdio Stdio) (Exit, error) {
	defer func() { _ = stream.Close() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if cmd.Timeout > 0 {
		late := time.AfterFunc(cmd.Timeout+grace, func() {
			cancel(errors.New("the guest did not tell how the program ended"))
		})
		defer late.Stop()
	}
	defer interrupt(ctx, stream)()

	began := time.Now()
	exit, err := exec(ctx, stream, cmd, stdio, cancel)
	if err != nil {
		return Exit{}, fmt.Errorf("exec: %w", causeOf(ctx, err))
	}
	exit.Duration = min(exit.Duration, time.Since(began))
	return exit, nil
}

func exec(ctx context.Context, stream net.Conn, cmd Command, stdio Stdio, fail context.CancelCauseFunc) (Exit, error) {
	w := agentv1.NewFrameWriter(stream)
	replies := execReplies{stdio: stdio, limited: cmd.Timeout > 0}
	if stdio.Leave != nil {
		over := make(chan struct{})
		var leaving sync.WaitGroup
		leaving.Go(func() { leave(w, stdio.Leave, over) })
		defer leaving.Wait()
		defer close(over)
		// A write may be blocked by a guest that takes nothing.
		defer func() { _ = stream.SetWriteDeadline(aLongTimeAgo) }()
	}
	if stdio.empty() {
		err := w.QueueMessage(agentv1.FrameRequest, cmd.request())
		if err == nil {
			err = w.Write(agentv1.FrameStdinEnd, nil)
		}
		if err != nil {
			return Exit{}, fmt.Errorf("send request: %w", err)
		}
		return replies.read(ctx, stream)
	}
	if err := w.WriteMessage(agentv1.FrameRequest, cmd.request()); err != nil {
		return Exit{}, fmt.Errorf("send request: %w", err)
	}
	feed := newStdinFeed()
	replies.ack = feed.ack
	var feeding sync.WaitGroup
	feeding.Go(func() {
		if err := feed.run(w, stdio.Stdin); err != nil {
			fail(err)
		}
	})
	exit, err := replies.read(ctx, stream)
	// A write of input may be blocked by a guest that takes no more of it.
	_ = stream.SetWriteDeadline(aLongTimeAgo)
	if feed.stop() {
		feeding.Wait()
	}
	return exit, err
}

// leave tells the guest that no more output is wanted when that is so, unless the
// program is over before. What is wrong with the stream shows where it is read.
func leave(w *agentv1.FrameWriter, left, over <-chan struct{}) {
	select {
	case <-left:
		_ = w.Write(agentv1.FrameLeave, nil)
	case <-over:
	}
}

// maxUnwanted is how much output a guest may have had on its way when it is told
// that no more is wanted.
const maxUnwanted = 1 << 20

func (c Command) request() *agentv1.Request {
	e := &agentv1.Exec{Id: c.ID, Digest: c.Digest}
	if len(c.Argv) > 0 {
		e.Program = &agentv1.Exec_Command{Command: &agentv1.Command{Argv: c.Argv, Env: c.Env, Dir: c.Dir}}
	} else {
		e.Program = &agentv1.Exec_Code{Code: []byte(c.Code)}
	}
	if c.Timeout > 0 {
		// Rounded up: zero would mean no limit.
		e.TimeoutMs = uint64((c.Timeout + time.Millisecond - 1) / time.Millisecond)
	}
	return &agentv1.Request{Op: &agentv1.Request_Exec{Exec: e}}
}

// execReplies takes in what the guest sends during an exec.
type execReplies struct {
	stdio    Stdio
	unwanted int             // bytes of output that nobody wanted
	limited  bool            // the program has a time limit
	ack      func(int) error // nil when there is no input to acknowledge
}

// read reads replies up to the exit and makes sure that nothing follows it. It
// looks at ctx itself: a guest that never stops sending never meets a deadline.
func (e *execReplies) read(ctx context.Context, stream io.Reader) (Exit, error) {
	frames := agentv1.NewFrameReader(stream, agentv1.FrameStdout, agentv1.FrameStderr,
		agentv1.FrameStdinAck, agentv1.FrameExit, agentv1.FrameError)
	for {
		if ctx.Err() != nil {
			return Exit{}, context.Cause(ctx)
		}
		t, payload, err := next(frames)
		if err != nil {
			return Exit{}, err
		}
		switch t {
		case agentv1.FrameStdout:
			err = e.write("stdout", e.stdio.Stdout, payload)
		case agentv1.FrameStderr:
			err = e.write("stderr", e.stdio.Stderr, payload)
		case agentv1.FrameStdinAck:
			err = e.takeAck(payload)
		case agentv1.FrameExit:
			exit, err := e.exit(payload)
			if err == nil {
				err = expectEnd(stream)
			}
			if err != nil {
				return Exit{}, err
			}
			return exit, nil
		}
		if err != nil {
			return Exit{}, err
		}
	}
}

func (e *execReplies) takeAck(payload []byte) error {
	n, err := agentv1.ParseAck(payload)
	if err != nil {
		return err
	}
	if e.ack == nil {
		return fmt.Errorf("%w: it took input that it was not given", errProtocol)
	}
	return e.ack(n)
}

// exit decodes and judges the guest's word on how the program ended.
func (e *execReplies) exit(payload []byte) (Exit, error) {
	var m agentv1.Exit
	if err := proto.Unmarshal(payload, &m); err != nil {
		return Exit{}, fmt.Errorf("%w: exit: %w", errProtocol, err)
	}
	return judge(&m, e.limited)
}

// judge takes an exit for what it says if it can be: that of a program that has a
// time limit, if limited is set.
func judge(m *agentv1.Exit, limited bool) (Exit, error) {
	hit := Hit{Memory: m.GetHit().GetMemory(), Disk: m.GetHit().GetDisk(), PIDs: m.GetHit().GetPids()}
	if m.GetStartError() != "" {
		if m.GetCode() != 0 || m.GetSignal() != 0 || m.GetTimedOut() || m.GetDurationUs() != 0 || m.GetWarm() {
			return Exit{}, fmt.Errorf("%w: a program that did not start has an exit", errProtocol)
		}
		return Exit{StartError: printable.Head(m.GetStartError(), maxText), Hit: hit}, nil
	}
	code, sig := m.GetCode(), m.GetSignal()
	switch {
	case code < 0 || code > 255:
		return Exit{}, fmt.Errorf("%w: exit code %d", errProtocol, code)
	case sig < 0 || sig > maxSignal || sig != 0 && code != 128+sig:
		return Exit{}, fmt.Errorf("%w: exit code %d with signal %d", errProtocol, code, sig)
	case m.GetTimedOut() && (sig == 0 || !limited):
		return Exit{}, fmt.Errorf("%w: a time-out that cannot be", errProtocol)
	}
	const maxMicroseconds = uint64((1<<63 - 1) / time.Microsecond)
	return Exit{
		Code:     int(code),
		Signal:   int(sig),
		TimedOut: m.GetTimedOut(),
		Warm:     m.GetWarm(),
		Duration: time.Duration(min(m.GetDurationUs(), maxMicroseconds)) * time.Microsecond,
		Hit:      hit,
	}, nil
}

func (e *execReplies) write(name string, w io.Writer, p []byte) error {
	select {
	case <-e.stdio.Leave:
		if e.unwanted += len(p); e.unwanted > maxUnwanted {
			return fmt.Errorf("%w: it goes on with output that nobody wants", errProtocol)
		}
		return nil
	default:
	}
	if w == nil {
		return nil
	}
	if _, err := w.Write(p); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
