package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// What an agent says cannot be done, beside that a [GoneError] has.
var (
	// ErrNoExec says that the agent knows no program of that id.
	ErrNoExec = errors.New("no program has that id")
	// ErrExecEnded says that the program has ended, or its input has.
	ErrExecEnded = errors.New("the program has ended, or its input has")
	// ErrInputFull says that the program has not read the input that it was given.
	ErrInputFull = errors.New("there is no room for that much input")
	// ErrExists says that a program with that id was started before, for the same
	// request, and ErrDiffers, that it was for another one.
	ErrExists  = errors.New("a program with that id was started before")
	ErrDiffers = errors.New("a program with that id was started for another request")
	// ErrMany says that the agent can remember no more ids.
	ErrMany = errors.New("too many programs were started that can be asked for again")
	// ErrBeyond says that the output is not that long.
	ErrBeyond = errors.New("the output is not that long")
)

// GoneError says that output which was asked for is no longer kept.
type GoneError struct {
	// First is the position from which on there is some.
	First int64
}

func (e *GoneError) Error() string { return fmt.Sprintf("output before byte %d is gone", e.First) }

// Stream is one of a program's output streams.
type Stream int

// The output streams.
const (
	Stdout Stream = iota
	Stderr
)

// Span is the part of a stream that is there: from First up to, and without, End.
type Span struct{ First, End int64 }

// ExecState is what the agent knows of a program that has an id.
type ExecState struct {
	ID string
	// Age is how long ago it was started.
	Age time.Duration
	// Exit is how it ended, nil while it runs.
	Exit           *Exit
	Stdout, Stderr Span
	// StdinBytes is how much input it was given, and StdinOpen tells whether it
	// may be given more.
	StdinBytes int64
	StdinOpen  bool
}

// checkID refuses what cannot be the name of a program: the agent takes an empty
// one for all of them.
func checkID(id string) error {
	if hex, ok := strings.CutPrefix(id, "ex_"); !ok || len(hex) != 12 || strings.Trim(hex, "0123456789abcdef") != "" {
		return fmt.Errorf("%.20q cannot be the id of a program", id)
	}
	return nil
}

// ExecOnce returns what the agent knows of the program called id that was started
// with a digest. The error is [ErrNoExec] if none was, [ErrDiffers] if it has
// another digest, and [ErrExists] if it is no longer known what became of it.
func (s *Session) ExecOnce(ctx context.Context, id string, digest []byte) (ExecState, error) {
	return s.execState(ctx, id, digest)
}

// StartExec starts cmd, which has an id, and returns when it runs or it is known
// that it could not be started; its state tells which. It is given stdin, and may
// be given more if open is set.
func (s *Session) StartExec(ctx context.Context, cmd Command, stdin []byte, open bool) error {
	req := cmd.request()
	e := req.GetExec()
	e.Detach, e.Stdin, e.StdinOpen = true, stdin, open
	err := checkID(cmd.ID)
	if err == nil {
		err = s.order(ctx, req)
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.ID, err)
	}
	return nil
}

// AwaitExec returns how the program called id ended, when it has.
func (s *Session) AwaitExec(ctx context.Context, id string) (Exit, error) {
	req := &agentv1.Request{Op: &agentv1.Request_AwaitExec{AwaitExec: &agentv1.AwaitExec{Id: id}}}
	var exit Exit
	err := s.ask(ctx, id, req, func(stream net.Conn) (err error) {
		exit, err = readExit(stream)
		return err
	})
	if err != nil {
		return Exit{}, fmt.Errorf("await %s: %w", id, err)
	}
	return exit, nil
}

// Execs returns what the agent knows of programs, in the order of their starts.
func (s *Session) Execs(ctx context.Context) ([]ExecState, error) {
	list, err := s.execs(ctx, "", nil)
	if err != nil {
		return nil, fmt.Errorf("list programs: %w", err)
	}
	return list, nil
}

// ExecState returns what the agent knows of the program called id.
func (s *Session) ExecState(ctx context.Context, id string) (ExecState, error) {
	return s.execState(ctx, id, nil)
}

func (s *Session) execState(ctx context.Context, id string, digest []byte) (ExecState, error) {
	err := checkID(id)
	var list []ExecState
	if err == nil {
		list, err = s.execs(ctx, id, digest)
	}
	if err == nil && (len(list) != 1 || list[0].ID != id) {
		err = fmt.Errorf("%w: it tells of other programs", errProtocol)
	}
	if err != nil {
		return ExecState{}, fmt.Errorf("look at %s: %w", id, err)
	}
	return list[0], nil
}

func (s *Session) execs(ctx context.Context, id string, digest []byte) (list []ExecState, err error) {
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	req := &agentv1.Request{Op: &agentv1.Request_ListExecs{ListExecs: &agentv1.ListExecs{Id: id, Digest: digest}}}
	err = ask(ctx, stream, req, func(stream net.Conn) error {
		list, err = readExecs(stream)
		return err
	})
	return list, err
}

// FeedExec gives the program called id more input, at most 1 MiB: all of it, or
// on an error that the agent reports nothing.
func (s *Session) FeedExec(ctx context.Context, id string, data []byte, end bool) error {
	req := &agentv1.Request{Op: &agentv1.Request_FeedExec{FeedExec: &agentv1.FeedExec{Id: id, Data: data, End: end}}}
	if err := s.ask(ctx, id, req, func(stream net.Conn) error { return readDone(stream) }); err != nil {
		return fmt.Errorf("feed %s: %w", id, err)
	}
	return nil
}

// SignalExec sends a signal to the process group of the program called id, and
// SIGKILL to all that it started.
func (s *Session) SignalExec(ctx context.Context, id string, signal int) error {
	req := &agentv1.Request{Op: &agentv1.Request_SignalExec{SignalExec: &agentv1.SignalExec{Id: id, Signal: int32(signal)}}}
	if err := s.ask(ctx, id, req, func(stream net.Conn) error { return readDone(stream) }); err != nil {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	return nil
}

// ReadExec returns the output of the program called id from a position on: what
// there is now, or with follow all there will be. Its Read ends with [io.EOF]
// where the stream does, and with a [*GoneError] when the reader is so slow that
// bytes it has not read are gone. When ctx ends, so does the reading. The caller
// closes it.
func (s *Session) ReadExec(ctx context.Context, id string, from Stream, offset int64, follow bool) (io.ReadCloser, error) {
	r, err := s.readExec(ctx, id, from, offset, follow)
	if err != nil {
		return nil, fmt.Errorf("read the output of %s: %w", id, err)
	}
	return r, nil
}

func (s *Session) readExec(ctx context.Context, id string, from Stream, offset int64, follow bool) (io.ReadCloser, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	o := &outputReader{
		ctx: ctx, stream: stream, stop: interrupt(ctx, stream),
		frames: agentv1.NewFrameReader(stream, agentv1.FrameData, agentv1.FrameEnd, agentv1.FrameError),
	}
	err = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameRequest, &agentv1.Request{
		Op: &agentv1.Request_ReadExec{ReadExec: &agentv1.ReadExec{
			Id: id, Stream: agentv1.ReadExec_Stream(from), Offset: uint64(offset), Follow: follow,
		}},
	})
	if err != nil {
		_ = o.Close()
		return nil, causeOf(ctx, err)
	}
	return o, nil
}

// outputReader reads the data frames of one stream.
type outputReader struct {
	ctx    context.Context
	stream net.Conn
	stop   func() bool
	frames *agentv1.FrameReader
	left   []byte // of the last frame
	err    error
	once   sync.Once
}

func (o *outputReader) Read(p []byte) (int, error) {
	if len(o.left) == 0 && o.err == nil {
		o.left, o.err = o.next()
	}
	if len(o.left) == 0 {
		return 0, o.err
	}
	n := copy(p, o.left)
	o.left = o.left[n:]
	return n, nil
}

func (o *outputReader) next() ([]byte, error) {
	if o.ctx.Err() != nil { // a guest that never stops sending never meets a deadline
		return nil, context.Cause(o.ctx)
	}
	t, payload, err := next(o.frames)
	if err != nil {
		return nil, causeOf(o.ctx, err)
	}
	if t == agentv1.FrameEnd {
		return nil, io.EOF
	}
	return payload, nil
}

// Close ends the reading. It may be called again.
func (o *outputReader) Close() error {
	o.once.Do(func() {
		o.stop()
		_ = o.stream.Close()
	})
	return nil
}

// ask carries out an operation about the program called id.
func (s *Session) ask(ctx context.Context, id string, req *agentv1.Request, read func(net.Conn) error) error {
	if err := checkID(id); err != nil {
		return err
	}
	stream, err := s.OpenStream(ctx)
	if err != nil {
		return err
	}
	return ask(ctx, stream, req, read)
}

// ask sends a request on stream, which it closes, and lets read take the reply.
func ask(ctx context.Context, stream net.Conn, req *agentv1.Request, read func(net.Conn) error) error {
	defer func() { _ = stream.Close() }()
	defer interrupt(ctx, stream)()
	if err := agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameRequest, req); err != nil {
		return causeOf(ctx, err)
	}
	return causeOf(ctx, read(stream))
}

func readExit(stream io.Reader) (Exit, error) {
	_, payload, err := next(agentv1.NewFrameReader(stream, agentv1.FrameExit, agentv1.FrameError))
	if err != nil {
		return Exit{}, err
	}
	var m agentv1.Exit
	if err := proto.Unmarshal(payload, &m); err != nil {
		return Exit{}, fmt.Errorf("%w: exit: %w", errProtocol, err)
	}
	// Who waits for a program need not have started it, and so not know of a limit.
	return judge(&m, true)
}

// readExecs reads a list of programs, and holds the guest to what can be.
func readExecs(stream io.Reader) ([]ExecState, error) {
	_, payload, err := next(agentv1.NewFrameReader(stream, agentv1.FrameExecs, agentv1.FrameError))
	if err != nil {
		return nil, err
	}
	var m agentv1.ExecList
	if err := proto.Unmarshal(payload, &m); err != nil {
		return nil, fmt.Errorf("%w: list: %w", errProtocol, err)
	}
	if len(m.GetExecs()) > agentv1.MaxExecs {
		return nil, fmt.Errorf("%w: a list of %d programs", errProtocol, len(m.GetExecs()))
	}
	list := make([]ExecState, len(m.GetExecs()))
	seen := make(map[string]bool)
	for i, e := range m.GetExecs() {
		if list[i], err = execState(e); err != nil {
			return nil, err
		}
		if seen[e.GetId()] {
			return nil, fmt.Errorf("%w: a program is listed twice", errProtocol)
		}
		seen[e.GetId()] = true
	}
	return list, nil
}

// maxAge is more than any sandbox lives.
const maxAge = 366 * 24 * time.Hour

func execState(m *agentv1.ExecState) (ExecState, error) {
	if checkID(m.GetId()) != nil {
		return ExecState{}, fmt.Errorf("%w: an id that the host did not give", errProtocol)
	}
	state := ExecState{
		ID:         m.GetId(),
		Age:        time.Duration(min(m.GetAgeUs(), uint64(maxAge.Microseconds()))) * time.Microsecond,
		StdinBytes: int64(m.GetStdinBytes()), StdinOpen: m.GetStdinOpen(),
	}
	if state.StdinBytes < 0 {
		return ExecState{}, fmt.Errorf("%w: it was given more input than there is", errProtocol)
	}
	var err error
	if state.Stdout, err = span(m.GetStdout()); err != nil {
		return ExecState{}, err
	}
	if state.Stderr, err = span(m.GetStderr()); err != nil {
		return ExecState{}, err
	}
	if m.GetExit() == nil {
		return state, nil
	}
	exit, err := judge(m.GetExit(), m.GetTimeoutMs() > 0)
	if err != nil {
		return ExecState{}, err
	}
	exit.Duration = min(exit.Duration, state.Age)
	state.Exit, state.StdinOpen = &exit, false
	return state, nil
}

func span(m *agentv1.Span) (Span, error) {
	s := Span{First: int64(m.GetFirst()), End: int64(m.GetEnd())}
	if s.First < 0 || s.End < s.First {
		return Span{}, fmt.Errorf("%w: a stream from %d to %d", errProtocol, m.GetFirst(), m.GetEnd())
	}
	return s, nil
}

// guestError is what an error frame says.
func guestError(m *agentv1.Error, text error) error {
	switch m.GetCode() {
	case agentv1.Error_NOT_FOUND:
		return ErrNoExec
	case agentv1.Error_ENDED:
		return ErrExecEnded
	case agentv1.Error_FULL:
		return ErrInputFull
	case agentv1.Error_BEYOND:
		return ErrBeyond
	case agentv1.Error_EXISTS:
		return ErrExists
	case agentv1.Error_DIFFERS:
		return ErrDiffers
	case agentv1.Error_MANY:
		return ErrMany
	case agentv1.Error_GONE:
		if first := int64(m.GetFirst()); first > 0 {
			return &GoneError{First: first}
		}
	}
	return text
}
