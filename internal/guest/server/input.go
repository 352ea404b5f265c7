package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// input is a program's standard input on its way to the pipe. It comes from the
// stream that started the program, of which the host may have sent
// [agentv1.StdinWindow] bytes that were not acknowledged, so receiving never
// waits for the program; or, when nobody sends any on a stream, in pieces that
// are taken whole or not at all.
type input struct {
	ack   func(n int) error // n bytes of the stream's were taken
	leave func()            // the host wants no more output
	feeds *allowance

	mu       sync.Mutex
	more     sync.Cond
	buf      bytes.Buffer
	given    uint64 // bytes, ever
	owed     int    // bytes of the allowance that buf takes
	orphaned bool   // no stream brings any
	ended    bool   // no more input follows
	closed   bool   // the program needs no more
}

// Why a program is not given any input.
var (
	errNoInput = errors.New("the program has ended, or its input has")
	errFull    = errors.New("the program has not read its input")
)

func newInput(feeds *allowance, ack func(int) error) *input {
	in := &input{ack: ack, feeds: feeds}
	in.more.L = &in.mu
	return in
}

// receive takes in what the host sends until the stream ends, and returns why
// that is.
func (in *input) receive(stream io.Reader) error {
	frames := agentv1.NewFrameReader(stream, agentv1.FrameStdin, agentv1.FrameStdinEnd, agentv1.FrameLeave)
	for {
		t, payload, err := frames.Next()
		if errors.Is(err, io.EOF) {
			return errHostGone
		}
		if err != nil {
			return fmt.Errorf("read input: %w", err)
		}
		if t == agentv1.FrameLeave {
			in.leave()
			continue
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
		in.given += uint64(len(payload))
	}
	in.more.Signal()
	return nil
}

// orphan says that nobody sends input on a stream any more. If it has not ended,
// it stays open: a part is not to be taken for the whole.
func (in *input) orphan() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.orphaned = true
}

// feed gives the program data, all of it or nothing.
func (in *input) feed(data []byte, end bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.ended || in.closed:
		return errNoInput
	case !in.orphaned || in.buf.Len()+len(data) > agentv1.MaxFeed || !in.feeds.take(len(data)):
		return errFull
	}
	in.buf.Write(data)
	in.owed += len(data)
	in.given += uint64(len(data))
	in.ended = end
	in.more.Signal()
	return nil
}

// state tells how many bytes the program was given, and whether it may be given
// more.
func (in *input) state() (given uint64, open bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.given, !in.ended && !in.closed
}

// Read hands bytes to the program and lets the host send as many more.
func (in *input) Read(p []byte) (int, error) {
	n, err := in.take(p)
	if n > 0 {
		if err := in.ack(n); err != nil {
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
	n, err := in.buf.Read(p)
	in.repay(min(n, in.owed))
	if in.buf.Len() == 0 {
		in.buf = bytes.Buffer{} // it may have grown to hold a large piece
	}
	return n, err
}

// repay gives n bytes of the allowance back. The caller holds mu.
func (in *input) repay(n int) {
	in.owed -= n
	in.feeds.give(n)
}

// Close drops what is left and ends a Read that waits.
func (in *input) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.buf = bytes.Buffer{}
	in.repay(in.owed)
	in.more.Signal()
	return nil
}

// allowance is the memory that input may take which was not asked for piece by
// piece, in all programs together.
type allowance struct{ left atomic.Int64 }

// take takes n bytes, if there are as many.
func (a *allowance) take(n int) bool {
	for {
		left := a.left.Load()
		if left < int64(n) {
			return false
		}
		if a.left.CompareAndSwap(left, left-int64(n)) {
			return true
		}
	}
}

func (a *allowance) give(n int) { a.left.Add(int64(n)) }
