package agentv1_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

var allTypes = []agentv1.FrameType{
	agentv1.FrameRequest, agentv1.FrameStdin, agentv1.FrameStdinEnd, agentv1.FrameLeave,
	agentv1.FrameHello, agentv1.FrameStdout, agentv1.FrameStderr, agentv1.FrameStdinAck,
	agentv1.FrameExit, agentv1.FrameDone, agentv1.FrameError, agentv1.FrameExecs,
	agentv1.FrameData, agentv1.FrameEnd,
}

// The bytes that docs/PROTOCOL.md shows.
func TestFrameBytes(t *testing.T) {
	var buf bytes.Buffer
	w := agentv1.NewFrameWriter(&buf)
	for _, err := range []error{
		w.WriteMessage(agentv1.FrameRequest, &agentv1.Request{Op: &agentv1.Request_Exec{Exec: &agentv1.Exec{
			Program: &agentv1.Exec_Code{Code: []byte("print(6*7)")}, TimeoutMs: 5000,
		}}}),
		w.Write(agentv1.FrameStdinEnd, nil),
		w.Write(agentv1.FrameStdout, []byte("42\n")),
		w.WriteMessage(agentv1.FrameExit, &agentv1.Exit{DurationUs: 13021}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := "\x01\x00\x00\x00\x11" + "\x12\x0f\x18\x88\x27\x0a\x0aprint(6*7)" +
		"\x03\x00\x00\x00\x00" +
		"\x11\x00\x00\x00\x0342\n" +
		"\x14\x00\x00\x00\x03\x28\xdd\x65"
	if got := buf.String(); got != want {
		t.Errorf("frames are\n%x, want\n%x", got, want)
	}
}

func TestFrameBounds(t *testing.T) {
	tests := []struct {
		t    agentv1.FrameType
		size int
		ok   bool
	}{
		{agentv1.FrameRequest, 0, false},
		{agentv1.FrameRequest, agentv1.MaxRequest, true},
		{agentv1.FrameRequest, agentv1.MaxRequest + 1, false},
		{agentv1.FrameStdout, 0, false},
		{agentv1.FrameStdout, agentv1.MaxData, true},
		{agentv1.FrameStdout, agentv1.MaxData + 1, false},
		{agentv1.FrameExit, 0, true},
		{agentv1.FrameExit, agentv1.MaxMessage, true},
		{agentv1.FrameExit, agentv1.MaxMessage + 1, false},
		{agentv1.FrameExecs, agentv1.MaxExecList, true},
		{agentv1.FrameExecs, agentv1.MaxExecList + 1, false},
		{agentv1.FrameStdinEnd, 0, true},
		{agentv1.FrameStdinEnd, 1, false},
		{agentv1.FrameStdinAck, 3, false},
		{agentv1.FrameStdinAck, 4, true},
		{0x99, 1, false},
	}
	for _, tt := range tests {
		payload := make([]byte, tt.size)
		var buf bytes.Buffer
		if err := agentv1.NewFrameWriter(&buf).Write(tt.t, payload); (err == nil) != tt.ok {
			t.Errorf("writing %d bytes of type %#02x: %v", tt.size, byte(tt.t), err)
		}
		header := []byte{byte(tt.t), byte(tt.size >> 24), byte(tt.size >> 16), byte(tt.size >> 8), byte(tt.size)}
		r := agentv1.NewFrameReader(io.MultiReader(bytes.NewReader(header), bytes.NewReader(payload)), append(allTypes, 0x99)...)
		gotType, got, err := r.Next()
		switch {
		case !tt.ok && !errors.Is(err, agentv1.ErrFrame):
			t.Errorf("reading %d bytes of type %#02x: %v, want ErrFrame", tt.size, byte(tt.t), err)
		case tt.ok && (err != nil || gotType != tt.t || !bytes.Equal(got, payload)):
			t.Errorf("reading %d bytes of type %#02x: type %#02x, %d bytes, %v", tt.size, byte(tt.t), byte(gotType), len(got), err)
		}
	}
}

func TestFrameReaderEnds(t *testing.T) {
	for in, want := range map[string]error{
		"":                         io.EOF,
		"\x11":                     io.ErrUnexpectedEOF,
		"\x11\x00\x00\x00":         io.ErrUnexpectedEOF,
		"\x11\x00\x00\x00\x02":     io.ErrUnexpectedEOF,
		"\x11\x00\x00\x00\x02a":    io.ErrUnexpectedEOF,
		"\x02\x00\x00\x00\x01a":    agentv1.ErrFrame, // known, but not here
		"\x11\xff\xff\xff\xffrest": agentv1.ErrFrame,
	} {
		r := agentv1.NewFrameReader(strings.NewReader(in), agentv1.FrameStdout)
		if _, _, err := r.Next(); !errors.Is(err, want) {
			t.Errorf("%q: error is %v, want %v", in, err, want)
		}
	}
}

// sizes is the table of docs/PROTOCOL.md: how long payloads may be.
var sizes = map[agentv1.FrameType][2]int{
	0x01: {1, 2 << 20}, 0x02: {1, 64 << 10}, 0x03: {0, 0}, 0x04: {0, 0},
	0x10: {0, 16 << 10}, 0x11: {1, 64 << 10}, 0x12: {1, 64 << 10}, 0x13: {4, 4},
	0x14: {0, 16 << 10}, 0x15: {0, 16 << 10}, 0x16: {0, 16 << 10}, 0x17: {0, 512 << 10},
	0x20: {1, 64 << 10}, 0x21: {0, 0},
}

// Only frames that may be there are let through, as they were sent. A frame that
// may not costs no more than its header, whatever it announces.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x11\x00\x00\x00\x0342\n\x14\x00\x00\x00\x00"), byte(0x11))
	f.Add([]byte("\x13\x00\x00\x00\x04\x00\x00\x10\x00"), byte(0x13))
	f.Add([]byte("\x11\xff\xff\xff\xff"), byte(0x11))
	for kind, size := range sizes {
		for _, n := range []int{size[0] - 1, size[0], size[1] + 1} {
			f.Add([]byte{byte(kind), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), 1, 2, 3, 4, 5}, byte(kind))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, accept byte) {
		types := []agentv1.FrameType{agentv1.FrameType(accept), agentv1.FrameExit}
		src := bytes.NewReader(in)
		r := agentv1.NewFrameReader(src, types...)
		var again bytes.Buffer
		w := agentv1.NewFrameWriter(&again)
		for {
			rest := in[len(in)-src.Len():]
			kind, payload, err := r.Next()
			if len(rest) >= 5 {
				size, known := sizes[agentv1.FrameType(rest[0])]
				n := int(binary.BigEndian.Uint32(rest[1:]))
				fits := known && n >= size[0] && n <= size[1] && slices.Contains(types, agentv1.FrameType(rest[0]))
				if fits == errors.Is(err, agentv1.ErrFrame) {
					t.Fatalf("a frame of type %#02x and %d bytes: %v", rest[0], n, err)
				}
				if !fits && len(rest)-src.Len() > 5 {
					t.Fatalf("%d bytes were read of a frame that is refused", len(rest)-src.Len())
				}
			}
			if err != nil {
				break
			}
			if err := w.Write(kind, payload); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			if !bytes.Equal(again.Bytes(), in[:len(in)-src.Len()]) {
				t.Fatal("what was read is not what was there")
			}
		}
	})
}
