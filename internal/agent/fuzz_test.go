package agent

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"
	"unicode/utf8"
)

func FuzzExecReplies(f *testing.F) {
	f.Add([]byte("\x11\x00\x00\x00\x0342\n\x14\x00\x00\x00\x03\x28\xdd\x65"), true)
	f.Add([]byte("\x13\x00\x00\x00\x04\x00\x00\x00\x01\x14\x00\x00\x00\x00"), false)
	f.Add([]byte("\x14\x00\x00\x00\x07\x08\x89\x01\x10\x09\x18\x01"), true)
	f.Add([]byte("\x14\x00\x00\x00\x03\x22\x01x"), true)
	f.Add([]byte("\x16\x00\x00\x00\x03\x0a\x01x"), true)
	f.Fuzz(func(t *testing.T, in []byte, limited bool) {
		var stdout, stderr bytes.Buffer
		const given = 100
		feed := newStdinFeed()
		feed.take(given)
		stream := bytes.NewReader(in)
		exit, err := execReplies{
			stdio:   Stdio{Stdout: &stdout, Stderr: &stderr},
			limited: limited,
			ack:     feed.ack,
		}.read(t.Context(), stream)
		if stdout.Len()+stderr.Len() > len(in) {
			t.Fatal("more output than was sent")
		}
		if feed.sent < 0 || feed.sent > given {
			t.Fatalf("%d bytes of input are on their way", feed.sent)
		}
		if err != nil {
			if exit != (Exit{}) {
				t.Fatalf("an error came with %+v", exit)
			}
			return
		}
		if stream.Len() > 0 {
			t.Fatalf("%d bytes follow the exit", stream.Len())
		}
		started := exit.StartError == ""
		switch {
		case exit.Code < 0 || exit.Code > 255 || exit.Duration < 0,
			exit.Signal < 0 || exit.Signal > maxSignal,
			exit.Signal != 0 && exit.Code != 128+exit.Signal,
			exit.TimedOut && (!limited || exit.Signal == 0),
			!started && exit != Exit{StartError: exit.StartError},
			len(exit.StartError) > 3*maxText || !utf8.ValidString(exit.StartError):
			t.Fatalf("impossible exit %+v", exit)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte("\x10\x00\x00\x00\x0d\x08\x01\x12\x02v1\x1a\x05sh -c"))
	f.Add([]byte("\x10\x00\x00\x00\x02\x08\x02"))
	f.Fuzz(func(t *testing.T, in []byte) {
		reply, err := readHello(bytes.NewReader(in))
		if (reply == nil) == (err == nil) {
			t.Fatalf("reply %v with error %v", reply, err)
		}
		if err == nil && (reply.GetProtocolVersion() != 1 || len(reply.GetBuildId()) > maxBuildID || len(reply.GetInterpreter()) > maxInterpreter) {
			t.Fatalf("accepted %v", reply)
		}
	})
}

func FuzzDone(f *testing.F) {
	f.Add([]byte("\x15\x00\x00\x00\x00"))
	f.Add([]byte("\x16\x00\x00\x00\x03\x0a\x01x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if readDone(bytes.NewReader(in)) == nil && (len(in) < 5 || in[0] != 0x15) {
			t.Fatalf("%q says done", in)
		}
	})
}

// said is a connection to a guest that says its piece and then goes.
type said struct{ io.Reader }

func (said) Write(p []byte) (int, error)      { return len(p), nil }
func (said) Close() error                     { return nil }
func (said) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (said) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (said) SetDeadline(time.Time) error      { return nil }
func (said) SetReadDeadline(time.Time) error  { return nil }
func (said) SetWriteDeadline(time.Time) error { return nil }

// The fence's verdict does not depend on how the bytes arrive.
func FuzzFence(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x04data"), 5)
	f.Add([]byte("\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"), 3)
	f.Fuzz(func(t *testing.T, in []byte, chunk int) {
		if chunk < 1 {
			return
		}
		whole := (&fence{}).check(in)
		var parts error
		var split fence
		for rest := in; len(rest) > 0 && parts == nil; {
			n := min(chunk, len(rest))
			parts = split.check(rest[:n])
			rest = rest[n:]
		}
		if (whole == nil) != (parts == nil) {
			t.Fatalf("at once: %v; in pieces of %d: %v", whole, chunk, parts)
		}
	})
}

// Whatever bytes a guest says, opening a session ends and leaves nothing.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x02\x00\x00\x00\x01\x00\x00\x00\x00" +
		"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x07\x10\x00\x00\x00\x02\x08\x01"))
	f.Add([]byte("\x00\x01\x00\x06\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		s, err := Open(ctx, said{bytes.NewReader(in)}, slog.New(slog.DiscardHandler))
		if ctx.Err() != nil {
			t.Fatal("it hung")
		}
		if err == nil {
			_ = s.Close()
		}
	})
}
