package agentv1

import (
	"encoding/binary"
	"io"
)

// yamux's header: version, type, flags, stream, length.
const (
	muxHeaderLen = 12
	muxData      = 0
	muxLenOffset = 8
)

// Gather returns conn for yamux to write to. yamux writes the header and the
// body of a data frame one after the other, and on vsock and virtio serial each
// write is a packet that wakes the other side; Gather makes one write of the
// two. It needs to be told nothing else: a header with a body is always
// followed by it.
func Gather(conn io.ReadWriteCloser) io.ReadWriteCloser { return &gather{ReadWriteCloser: conn} }

type gather struct {
	io.ReadWriteCloser
	held []byte // a header whose body comes next
	body bool   // held is such a header
}

// Write is called by yamux's one sender.
func (g *gather) Write(p []byte) (int, error) {
	if g.body {
		g.body = false
		g.held = append(g.held, p...)
		n, err := g.ReadWriteCloser.Write(g.held)
		return max(0, n-muxHeaderLen), err
	}
	if len(p) == muxHeaderLen && p[1] == muxData && binary.BigEndian.Uint32(p[muxLenOffset:]) > 0 {
		g.held, g.body = append(g.held[:0], p...), true
		return len(p), nil
	}
	return g.ReadWriteCloser.Write(p)
}
