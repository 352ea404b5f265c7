// Package agentv1 is the protocol between emberd and the agent that is PID 1 of
// a VM: the messages (agent.proto) and the frames that carry them.
//
// The one idea is that every length is bounded before a byte of it is read: a
// [FrameReader] is told which types its side of the stream may see, and each
// type has a smallest and a largest payload. docs/PROTOCOL.md tells the whole
// protocol. The package neither dials nor runs anything.
package agentv1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
)

const (
	// ProtocolVersion is the version both sides say in Hello.
	ProtocolVersion = 1
	// Port is the vsock port the agent listens on.
	Port = 1024

	// MaxData is the largest payload of a frame that carries bytes of a file,
	// a connection or a program's input and output.
	MaxData = 64 << 10
	// MaxRequest is the largest encoded [Request].
	MaxRequest = 2 << 20
	// MaxMessage is the largest encoded message other than a [Request].
	MaxMessage = 16 << 10
	// MaxExecs is how many programs an [ExecList] names at most.
	MaxExecs = 256
	// MaxExecList is its largest encoding.
	MaxExecList = 512 << 10
	// MaxFeed is the most input that a [FeedExec], or an [Exec] that is detached,
	// carries.
	MaxFeed = 1 << 20
	// StdinWindow is how many bytes of standard input the host may have sent
	// that the agent has not yet acknowledged.
	StdinWindow = 128 << 10
)

// FrameType says what the payload of a frame is.
type FrameType byte

// The frame types. The first group is sent by the host, the second by the
// guest, the third by both.
const (
	FrameRequest  FrameType = 0x01 // a Request; the first frame of each stream
	FrameStdin    FrameType = 0x02 // bytes of standard input
	FrameStdinEnd FrameType = 0x03 // standard input ends; empty
	FrameLeave    FrameType = 0x04 // no more output is wanted; empty

	FrameHello    FrameType = 0x10 // a HelloReply
	FrameStdout   FrameType = 0x11 // bytes of standard output
	FrameStderr   FrameType = 0x12 // bytes of standard error
	FrameStdinAck FrameType = 0x13 // how many bytes of input were taken; 4 bytes, big endian
	FrameExit     FrameType = 0x14 // an Exit; the last frame of an exec
	FrameDone     FrameType = 0x15 // a Done
	FrameError    FrameType = 0x16 // an Error; the last frame of its stream
	FrameExecs    FrameType = 0x17 // an ExecList

	FrameData FrameType = 0x20 // bytes of a file or a connection
	FrameEnd  FrameType = 0x21 // no more data from this side; empty
)

// headerLen is the type and the payload's length.
const headerLen = 5

// ErrFrame is matched by every error that says that the peer broke the framing.
var ErrFrame = errors.New("broken frame")

// bounds returns the smallest and largest payload of frames of type t; ok is
// false when there is no such type.
func (t FrameType) bounds() (lo, hi int, ok bool) {
	switch t {
	case FrameRequest:
		return 1, MaxRequest, true
	case FrameStdin, FrameStdout, FrameStderr, FrameData:
		return 1, MaxData, true
	case FrameHello, FrameExit, FrameDone, FrameError:
		return 0, MaxMessage, true
	case FrameExecs:
		return 0, MaxExecList, true
	case FrameStdinAck:
		return 4, 4, true
	case FrameStdinEnd, FrameLeave, FrameEnd:
		return 0, 0, true
	}
	return 0, 0, false
}

// check tells whether a frame of type t may have a payload of n bytes.
func (t FrameType) check(n uint64) error {
	lo, hi, ok := t.bounds()
	if !ok {
		return fmt.Errorf("%w: unknown type %#02x", ErrFrame, byte(t))
	}
	if n < uint64(lo) || n > uint64(hi) {
		return fmt.Errorf("%w: %d bytes in a frame of type %#02x", ErrFrame, n, byte(t))
	}
	return nil
}

// A FrameReader reads the frames of one direction of a stream. It is used by
// one goroutine at a time.
type FrameReader struct {
	r      io.Reader
	accept []FrameType
	buf    []byte
}

// NewFrameReader returns a reader of frames from r that refuses every type but
// those in accept.
func NewFrameReader(r io.Reader, accept ...FrameType) *FrameReader {
	return &FrameReader{r: r, accept: accept}
}

// Next reads one frame. The payload is valid until the next call. The error is
// [io.EOF] when the stream ended between two frames, and [io.ErrUnexpectedEOF]
// when it ended inside one. A frame that is refused leaves the reader useless.
func (fr *FrameReader) Next() (FrameType, []byte, error) {
	var header [headerLen]byte
	if _, err := io.ReadFull(fr.r, header[:]); err != nil {
		return 0, nil, err
	}
	t, n, err := parseHeader(header, fr.accept)
	if err != nil {
		return 0, nil, err
	}
	fr.buf = slices.Grow(fr.buf[:0], n)[:n]
	if _, err := io.ReadFull(fr.r, fr.buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, fr.buf, nil
}

func parseHeader(header [headerLen]byte, accept []FrameType) (FrameType, int, error) {
	t, n := FrameType(header[0]), binary.BigEndian.Uint32(header[1:])
	if err := t.check(uint64(n)); err != nil {
		return 0, 0, err
	}
	if !slices.Contains(accept, t) {
		return 0, 0, fmt.Errorf("%w: type %#02x has no place here", ErrFrame, byte(t))
	}
	return t, int(n), nil
}

// A FrameWriter writes frames to one direction of a stream. Any number of
// goroutines may use it; a write that blocks holds up the others, since a frame
// must not be torn.
type FrameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewFrameWriter returns a writer of frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Write writes one frame, and those that were queued before it, in a single
// write.
func (fw *FrameWriter) Write(t FrameType, payload []byte) error {
	fw.mu.Lock()
	defer fw.mu.Unlock()
	if err := fw.append(t, payload); err != nil {
		return err
	}
	_, err := fw.w.Write(fw.buf)
	fw.buf = fw.buf[:0]
	return err
}

// WriteMessage writes one frame whose payload is m.
func (fw *FrameWriter) WriteMessage(t FrameType, m proto.Message) error {
	payload, err := marshal(m)
	if err != nil {
		return err
	}
	return fw.Write(t, payload)
}

// QueueMessage keeps one frame whose payload is m for the next write.
func (fw *FrameWriter) QueueMessage(t FrameType, m proto.Message) error {
	payload, err := marshal(m)
	if err != nil {
		return err
	}
	fw.mu.Lock()
	defer fw.mu.Unlock()
	return fw.append(t, payload)
}

func (fw *FrameWriter) append(t FrameType, payload []byte) error {
	if err := t.check(uint64(len(payload))); err != nil {
		return err
	}
	fw.buf = append(fw.buf, byte(t))
	fw.buf = binary.BigEndian.AppendUint32(fw.buf, uint32(len(payload)))
	fw.buf = append(fw.buf, payload...)
	return nil
}

func marshal(m proto.Message) ([]byte, error) {
	payload, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return payload, nil
}

// WriteAck writes a [FrameStdinAck] for n bytes.
func (fw *FrameWriter) WriteAck(n int) error {
	return fw.Write(FrameStdinAck, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

// ParseAck returns the count in the payload of a [FrameStdinAck].
func ParseAck(payload []byte) (int, error) {
	if len(payload) != 4 {
		return 0, fmt.Errorf("%w: an acknowledgement of %d bytes", ErrFrame, len(payload))
	}
	return int(binary.BigEndian.Uint32(payload)), nil
}
