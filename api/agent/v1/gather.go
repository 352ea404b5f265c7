package agentv1

import (
	"encoding/binary"
	"io"
	"sync"
	"time"
)

// yamux's header: version, type, flags, stream, length.
const (
	muxHeaderLen    = 12
	muxData         = 0
	muxWindow       = 1
	muxFlagsOffset  = 2
	muxStreamOffset = 4
	muxLenOffset    = 8
	// muxOpening are the flags with which a stream is opened and accepted.
	muxOpening = 1 | 2
	// muxEnding are those with which it is closed and reset.
	muxEnding = 4 | 8
)

// patience is how long bytes wait at most for others to go out with.
const patience = time.Second

// A Gatherer is a connection for yamux to write to, which makes fewer writes of
// yamux's. On vsock and virtio serial each write is a packet that wakes the
// other side, which under emulation costs more than anything the packet is for.
//
// A data frame's header and body go out together. What opens or accepts a stream
// goes out with what comes next, since a request or a reply follows, and so does
// the last word on a stream with the stream's end, see [Gatherer.Last]. If
// nothing comes they go out alone, a second later.
type Gatherer struct {
	io.ReadWriteCloser

	mu     sync.Mutex
	held   []byte
	body   bool // what is held ends with a header whose body comes next
	hold   bool // and that is the last word on its stream
	last   map[uint32]struct{}
	late   *time.Timer
	closed bool
}

// Gather returns a Gatherer that owns conn.
func Gather(conn io.ReadWriteCloser) *Gatherer {
	g := &Gatherer{ReadWriteCloser: conn, last: make(map[uint32]struct{})}
	g.late = time.AfterFunc(patience, g.flush)
	g.late.Stop()
	return g
}

// Last says that what is written next on a stream is followed by its end.
func (g *Gatherer) Last(stream uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last[stream] = struct{}{}
}

// Write is called by yamux's one sender.
func (g *Gatherer) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = append(g.held, p...)
	if g.body {
		g.body = false
	} else {
		g.look(p)
	}
	if g.body {
		return len(p), nil
	}
	if g.hold {
		g.hold = false
		g.late.Reset(patience)
		return len(p), nil
	}
	return len(p), g.send()
}

// look decides what happens after a frame's header.
func (g *Gatherer) look(header []byte) {
	if len(header) != muxHeaderLen {
		return
	}
	flags := binary.BigEndian.Uint16(header[muxFlagsOffset:])
	stream := binary.BigEndian.Uint32(header[muxStreamOffset:])
	switch {
	case flags&muxEnding != 0:
		delete(g.last, stream)
	case header[1] == muxWindow:
		g.hold = flags&muxOpening != 0
	case header[1] == muxData:
		g.body = binary.BigEndian.Uint32(header[muxLenOffset:]) > 0
		_, g.hold = g.last[stream]
	}
}

// send writes what is held. The caller holds mu.
func (g *Gatherer) send() error {
	g.late.Stop()
	_, err := g.ReadWriteCloser.Write(g.held)
	g.held = g.held[:0]
	return err
}

// flush writes what has waited long enough. Its error shows at the next write.
func (g *Gatherer) flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed && !g.body && len(g.held) > 0 {
		_ = g.send()
	}
}

// Close closes the connection, without what is held: a session that ends says
// so in a frame of its own.
func (g *Gatherer) Close() error {
	err := g.ReadWriteCloser.Close() // ends a write that holds mu
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.late.Stop()
	return err
}
