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
