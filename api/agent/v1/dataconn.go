package agentv1

import (
	"errors"
	"io"
	"net"
	"sync"
)

// A DataConn is a connection carried by the data frames of a stream. One
// goroutine may read while another writes. Closing it closes the stream.
//
// A deadline that strikes inside a frame loses nothing: the next Read goes on
// where the last one stopped.
type DataConn struct {
	net.Conn // the stream

	out *FrameWriter

	mu     sync.Mutex // makes Read callable by any goroutine
	header [headerLen]byte
	have   int   // bytes of header read so far
	body   int   // bytes of the current frame not yet read
	over   error // why no frame follows
}

// NewDataConn returns a connection over stream, whose next frame in either
// direction is a data or an end frame. It owns stream.
func NewDataConn(stream net.Conn) *DataConn {
	return &DataConn{Conn: stream, out: NewFrameWriter(stream)}
}

// Read reads what the peer wrote; [io.EOF] means that the peer ended its side
// with an end frame, [io.ErrUnexpectedEOF] that the stream broke off, and
// [ErrFrame] that what follows is no data. After an end or a broken frame the
// stream is not read any more.
func (c *DataConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for c.body == 0 && c.over == nil {
		if err := c.next(); err != nil {
			return 0, cutOff(err)
		}
	}
	if c.over != nil {
		return 0, c.over
	}
	n, err := c.Conn.Read(p[:min(len(p), c.body)])
	c.body -= n
	return n, cutOff(err)
}

// next reads on until the header is whole, and takes it in.
func (c *DataConn) next() error {
	n, err := c.Conn.Read(c.header[c.have:])
	c.have += n
	if c.have < headerLen {
		return err
	}
	c.have = 0
	t, size, err := parseHeader(c.header, []FrameType{FrameData, FrameEnd})
	switch {
	case err != nil:
		c.over = err
	case t == FrameEnd:
		c.over = io.EOF
	}
	c.body = size
	return nil
}

// Write sends p in as many data frames as it needs.
func (c *DataConn) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		chunk := p[sent:min(len(p), sent+MaxData)]
		if err := c.out.Write(FrameData, chunk); err != nil {
			return sent, err
		}
		sent += len(chunk)
	}
	return sent, nil
}

// CloseWrite tells the peer that no more data follows; reading goes on.
func (c *DataConn) CloseWrite() error { return c.out.Write(FrameEnd, nil) }

func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
