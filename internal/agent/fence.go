package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// The parts of yamux's header that the fence looks at: version, type, flags,
// stream, length.
const (
	muxHeaderLen  = 12
	muxData       = 0
	muxGoAway     = 3
	muxFlagSYN    = 1
	muxTypeOffset = 1
	muxFlagOffset = 2
	muxLenOffset  = 8
)

// errFence is matched by what ends a session whose guest oversteps.
var errFence = errors.New("the guest broke the session's rules")

// fence stands between a guest and yamux, which trusts its peer more than a
// host may trust a guest. It ends the connection when the guest opens a stream
// or sends a ping (yamux would start a goroutine for each), announces more data
// than any window allows, or leaves what was sent to it unread.
type fence struct {
	net.Conn

	header [muxHeaderLen]byte
	have   int
	body   uint32 // bytes of the current data frame still to come
}

// Read passes on what the rules allow. Only yamux's one reader calls it.
func (f *fence) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if refused := f.check(p[:n]); refused != nil {
		return 0, refused
	}
	return n, err
}

// Write gives the guest a bounded time to take p.
func (f *fence) Write(p []byte) (int, error) {
	if err := f.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return f.Conn.Write(p)
}

// check follows the stream of headers and bodies through p.
func (f *fence) check(p []byte) error {
	for len(p) > 0 {
		if f.body > 0 {
			n := min(uint32(len(p)), f.body)
			f.body -= n
			p = p[n:]
			continue
		}
		n := copy(f.header[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have < muxHeaderLen {
			return nil
		}
		f.have = 0
		if err := f.checkHeader(); err != nil {
			return err
		}
	}
	return nil
}

func (f *fence) checkHeader() error {
	kind := f.header[muxTypeOffset]
	length := binary.BigEndian.Uint32(f.header[muxLenOffset:])
	switch {
	case f.header[0] != 0 || kind > muxGoAway:
		return fmt.Errorf("%w: not a yamux header", errFence)
	case binary.BigEndian.Uint16(f.header[muxFlagOffset:])&muxFlagSYN != 0:
		return fmt.Errorf("%w: it opened a stream or sent a ping", errFence)
	case kind == muxData && length > windowSize:
		return fmt.Errorf("%w: a frame of %d bytes", errFence, length)
	case kind == muxData:
		f.body = length
	}
	return nil
}
