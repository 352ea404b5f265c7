package agentv1_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// readOnly is a stream whose peer has said all there is.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (c readOnly) Read(p []byte) (int, error) { return c.r.Read(p) }

func TestDataConnRead(t *testing.T) {
	tests := []struct {
		in, out string
		err     error
	}{
		{"\x20\x00\x00\x00\x02ab\x20\x00\x00\x00\x01c\x21\x00\x00\x00\x00", "abc", nil},
		{"\x21\x00\x00\x00\x00", "", nil},
		{"", "", io.ErrUnexpectedEOF},
		{"\x20\x00\x00\x00\x02ab", "ab", io.ErrUnexpectedEOF},
		{"\x20\x00\x00\x00\x02a", "a", io.ErrUnexpectedEOF},
		{"\x20\x00\x00", "", io.ErrUnexpectedEOF},
		{"\x20\x00\x00\x00\x00\x21\x00\x00\x00\x00", "", agentv1.ErrFrame},
		{"\x11\x00\x00\x00\x01a", "", agentv1.ErrFrame},
		{"\x20\xff\xff\xff\xff", "", agentv1.ErrFrame},
	}
	for _, tt := range tests {
		for name, r := range map[string]io.Reader{
			"at once":         strings.NewReader(tt.in),
			"a byte a time":   iotest.OneByteReader(strings.NewReader(tt.in)),
			"error with data": iotest.DataErrReader(strings.NewReader(tt.in)),
		} {
			got, err := io.ReadAll(agentv1.NewDataConn(readOnly{r: r}))
			if string(got) != tt.out || !errors.Is(err, tt.err) {
				t.Errorf("%q %s: read %q, %v; want %q, %v", tt.in, name, got, err, tt.out, tt.err)
			}
		}
	}
}

// A deadline in the middle of a frame loses nothing.
func TestDataConnDeadline(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	conn := agentv1.NewDataConn(a)
	frame := []byte("\x20\x00\x00\x00\x03abc")
	go func() {
		for i := range frame {
			time.Sleep(10 * time.Millisecond)
			_, _ = b.Write(frame[i : i+1])
		}
	}()
	var got []byte
	deadlines := 0
	for len(got) < 3 {
		if err := conn.SetReadDeadline(time.Now().Add(7 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var buf [8]byte
		n, err := conn.Read(buf[:])
		got = append(got, buf[:n]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			deadlines++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if string(got) != "abc" || deadlines == 0 {
		t.Errorf("read %q through %d deadlines", got, deadlines)
	}
}

func TestDataConnBothWays(t *testing.T) {
	a, b := net.Pipe()
	near, far := agentv1.NewDataConn(a), agentv1.NewDataConn(b)
	defer near.Close()
	defer far.Close()
	sent := bytes.Repeat([]byte("0123456789"), 50_000)
	go func() {
		_, _ = near.Write(sent)
		_ = near.CloseWrite()
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes of %d arrived, error %v", len(got), len(sent), err)
	}
	go func() { _, _ = far.Write([]byte("still open")); _ = far.CloseWrite() }()
	if got, err := io.ReadAll(near); err != nil || string(got) != "still open" {
		t.Errorf("read %q, %v after CloseWrite", got, err)
	}
}

// drip is a stream that brings at most size bytes at a time, and before each of
// them a deadline strikes.
type drip struct {
	r      io.Reader
	size   int
	struck bool
}

func (d *drip) Read(p []byte) (int, error) {
	d.struck = !d.struck
	if d.struck {
		return 0, os.ErrDeadlineExceeded
	}
	return d.r.Read(p[:min(len(p), d.size)])
}

// dataOf is what a stream means by docs/PROTOCOL.md: its data, how many of its
// bytes that takes, and how it ends.
func dataOf(in []byte) (data []byte, taken int, end error) {
	rest := in
	for len(rest) >= 5 {
		size := int(rest[1])<<24 | int(rest[2])<<16 | int(rest[3])<<8 | int(rest[4])
		kind := rest[0]
		rest = rest[5:]
		switch {
		case kind == 0x21 && size == 0:
			return data, len(in) - len(rest), io.EOF
		case kind != 0x20 || size < 1 || size > 64<<10:
			return data, len(in) - len(rest), agentv1.ErrFrame
		}
		n := min(size, len(rest))
		data = append(data, rest[:n]...)
		if rest = rest[n:]; n < size {
			break
		}
	}
	return data, len(in), io.ErrUnexpectedEOF
}

// What is read does not depend on how the bytes arrive, on how many are asked
// for at a time, or on deadlines; and nothing behind the end is touched.
func FuzzDataConn(f *testing.F) {
	f.Add([]byte("\x20\x00\x00\x00\x02ab\x20\x00\x00\x00\x01c\x21\x00\x00\x00\x00rest"), byte(3), byte(2))
	f.Add([]byte("\x20\x00\x01\x00\x00ab"), byte(255), byte(255))
	f.Add([]byte("\x20\x00\x00\x00\x00\x21\x00\x00\x00\x00"), byte(1), byte(1))
	f.Add([]byte("\x20\x00\x01\x00\x01a"), byte(5), byte(1))
	f.Fuzz(func(t *testing.T, in []byte, arrive, ask byte) {
		src := bytes.NewReader(in)
		conn := agentv1.NewDataConn(readOnly{r: &drip{r: src, size: int(arrive) + 1}})
		var got []byte
		buf := make([]byte, int(ask)+1)
		read := func() error {
			for {
				n, err := conn.Read(buf)
				got = append(got, buf[:n]...)
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					return err
				}
			}
		}
		end := read()
		want, taken, wantEnd := dataOf(in)
		if !bytes.Equal(got, want) || !errors.Is(end, wantEnd) {
			t.Fatalf("read %q, %v; want %q, %v", got, end, want, wantEnd)
		}
		if again := read(); !errors.Is(again, wantEnd) || len(got) != len(want) {
			t.Fatalf("after %v came %v and %d bytes", end, again, len(got)-len(want))
		}
		if n := len(in) - src.Len(); n != taken {
			t.Fatalf("%d bytes were taken from the stream, %d are its own", n, taken)
		}
	})
}
