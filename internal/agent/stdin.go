package agent

import (
	"errors"
	"fmt"
	"io"
	"sync"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// stdinChunk is how much input is read, and so sent, at a time.
const stdinChunk = 32 << 10

// stdinFeed sends a program its input, no faster than the guest takes it.
type stdinFeed struct {
	mu      sync.Mutex
	changed sync.Cond
	credit  int  // bytes that may be sent now
	sent    int  // bytes sent and not yet acknowledged
	stopped bool // nobody needs more input
	reading bool // a Read of the source is under way
}

func newStdinFeed() *stdinFeed {
	f := &stdinFeed{credit: agentv1.StdinWindow}
	f.changed.L = &f.mu
	return f
}

// run sends src to its end. It returns an error only if src has one: what is
// wrong with the stream shows where it is read.
func (f *stdinFeed) run(w *agentv1.FrameWriter, src io.Reader) error {
	buf := make([]byte, stdinChunk)
	for f.beginRead() {
		n, err := src.Read(buf)
		if !f.endRead() {
			return nil
		}
		for p := buf[:n]; len(p) > 0; {
			k := f.take(len(p))
			if k == 0 || w.Write(agentv1.FrameStdin, p[:k]) != nil {
				return nil
			}
			p = p[k:]
		}
		if errors.Is(err, io.EOF) {
			_ = w.Write(agentv1.FrameStdinEnd, nil)
			return nil
		}
		if err != nil {
			return fmt.Errorf("read stdin: %w", err)
		}
	}
	return nil
}

// ack notes that the guest took n bytes.
func (f *stdinFeed) ack(n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n > f.sent {
		return fmt.Errorf("%w: it took input that it was not given", errProtocol)
	}
	f.sent -= n
	f.credit += n
	f.changed.Signal()
	return nil
}

// stop ends run, and tells whether run is sure to return. It is not while a
// Read of the source blocks.
func (f *stdinFeed) stop() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	f.changed.Signal()
	return !f.reading
}

func (f *stdinFeed) beginRead() bool { return f.mark(true) }
func (f *stdinFeed) endRead() bool   { return f.mark(false) }

// mark sets reading and tells whether to go on.
func (f *stdinFeed) mark(reading bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reading = reading && !f.stopped
	return !f.stopped
}

// take waits for leave to send and returns how many bytes, at most n; none if
// the feed was stopped.
func (f *stdinFeed) take(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.credit == 0 && !f.stopped {
		f.changed.Wait()
	}
	if f.stopped {
		return 0
	}
	n = min(n, f.credit)
	f.credit -= n
	f.sent += n
	return n
}
