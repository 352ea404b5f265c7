package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// checkError fails the test if err, which bytes of a guest led to, could not be
// put into a log as it stands.
func checkError(t *testing.T, err error) {
	t.Helper()
	if text := err.Error(); len(text) > 4*maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		t.Fatalf("an error of %d bytes: %.200q", len(text), text)
	}
}

// outputOf is the output that a stream brings before anything that ends it.
func outputOf(in []byte) (stdout, stderr []byte) {
	for len(in) >= 5 {
		kind, size := agentv1.FrameType(in[0]), binary.BigEndian.Uint32(in[1:])
		in = in[5:]
		if size > uint32(len(in)) {
			break
		}
		switch kind {
		case agentv1.FrameStdout:
			stdout = append(stdout, in[:size]...)
		case agentv1.FrameStderr:
			stderr = append(stderr, in[:size]...)
		case agentv1.FrameStdinAck:
		default:
			return stdout, stderr
		}
		in = in[size:]
	}
	return stdout, stderr
}

// Whatever a guest says of a program, there is an exit that can be with all the
// output before it, or an error and no exit.
func FuzzExecReplies(f *testing.F) {
	f.Add([]byte("\x11\x00\x00\x00\x0342\n\x14\x00\x00\x00\x03\x28\xdd\x65"), true)
	f.Add([]byte("\x13\x00\x00\x00\x04\x00\x00\x00\x01\x14\x00\x00\x00\x00"), false)
	f.Add([]byte("\x13\x00\x00\x00\x04\x00\x00\x00\x65\x14\x00\x00\x00\x00"), false)
	f.Add([]byte("\x14\x00\x00\x00\x07\x08\x89\x01\x10\x09\x18\x01"), true)
	f.Add([]byte("\x14\x00\x00\x00\x03\x22\x01x"), true)
	f.Add([]byte("\x16\x00\x00\x00\x03\x0a\x01x"), true)
	f.Add([]byte("\x14\x00\x00\x00\x0b\x08\x89\x01\x10\x09\x3a\x04\x08\x01\x18\x01"), true)
	f.Fuzz(func(t *testing.T, in []byte, limited bool) {
		var stdout, stderr bytes.Buffer
		const given = 100
		feed := newStdinFeed()
		feed.take(given)
		stream := bytes.NewReader(in)
		replies := execReplies{
			stdio:   Stdio{Stdout: &stdout, Stderr: &stderr},
			limited: limited,
			ack:     feed.ack,
		}
		exit, err := replies.read(t.Context(), stream)
		if feed.sent < 0 || feed.sent > given {
			t.Fatalf("%d bytes of input are on their way", feed.sent)
		}
		wantOut, wantErr := outputOf(in)
		if !bytes.HasPrefix(wantOut, stdout.Bytes()) || !bytes.HasPrefix(wantErr, stderr.Bytes()) {
			t.Fatalf("output %q and %q, want no more than %q and %q", stdout.Bytes(), stderr.Bytes(), wantOut, wantErr)
		}
		if err != nil {
			checkError(t, err)
			if exit != (Exit{}) {
				t.Fatalf("an error came with %+v", exit)
			}
			return
		}
		if stream.Len() > 0 {
			t.Fatalf("%d bytes follow the exit", stream.Len())
		}
		if stdout.Len() < len(wantOut) || stderr.Len() < len(wantErr) {
			t.Fatalf("output %q and %q, want %q and %q", stdout.Bytes(), stderr.Bytes(), wantOut, wantErr)
		}
		started := exit.StartError == ""
		switch {
		case exit.Code < 0 || exit.Code > 255 || exit.Duration < 0,
			exit.Signal < 0 || exit.Signal > maxSignal,
			exit.Signal != 0 && exit.Code != 128+exit.Signal,
			exit.TimedOut && (!limited || exit.Signal == 0),
			!started && exit != Exit{StartError: exit.StartError, Hit: exit.Hit},
			len(exit.StartError) > 3*maxText || !utf8.ValidString(exit.StartError):
			t.Fatalf("impossible exit %+v", exit)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte("\x10\x00\x00\x00\x0d\x08\x01\x12\x02v1\x1a\x05sh -c"))
	f.Add([]byte("\x10\x00\x00\x00\x02\x08\x02"))
	f.Add([]byte("\x16\x00\x00\x00\x05\x0a\x03a\x1b\n"))
	f.Add([]byte("\x10\x00\x00\x00\x86\x08\x01\x12\x81\x01" + strings.Repeat("v", maxBuildID+1)))
	f.Fuzz(func(t *testing.T, in []byte) {
		stream := bytes.NewReader(in)
		reply, err := readHello(stream)
		if (reply == nil) == (err == nil) {
			t.Fatalf("reply %v with error %v", reply, err)
		}
		if err != nil {
			checkError(t, err)
			return
		}
		if reply.GetProtocolVersion() != 1 || len(reply.GetBuildId()) > maxBuildID || len(reply.GetInterpreter()) > maxInterpreter {
			t.Fatalf("accepted %v", reply)
		}
		checkTaken(t, in, stream)
	})
}

// checkTaken fails the test if anything but the first frame of in was read.
func checkTaken(t *testing.T, in []byte, stream *bytes.Reader) {
	t.Helper()
	if taken := len(in) - stream.Len(); taken < 5 || taken != 5+int(binary.BigEndian.Uint32(in[1:])) {
		t.Fatalf("%d bytes of %q were taken for one frame", taken, in)
	}
}

func FuzzDone(f *testing.F) {
	f.Add([]byte("\x15\x00\x00\x00\x00"))
	f.Add([]byte("\x15\x00\x00\x00\x00\x20\x00\x00\x00\x01a"))
	f.Add([]byte("\x16\x00\x00\x00\x03\x0a\x01x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		stream := bytes.NewReader(in)
		if err := readDone(stream); err != nil {
			checkError(t, err)
			return
		}
		if in[0] != 0x15 {
			t.Fatalf("%q says done", in)
		}
		checkTaken(t, in, stream)
	})
}

// said is a connection to a guest that says its piece and then goes.
type said struct {
	io.Reader
	closed *atomic.Bool
}

func (said) Write(p []byte) (int, error)      { return len(p), nil }
func (c said) Close() error                   { c.closed.Store(true); return nil }
func (said) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (said) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (said) SetDeadline(time.Time) error      { return nil }
func (said) SetReadDeadline(time.Time) error  { return nil }
func (said) SetWriteDeadline(time.Time) error { return nil }

// allowed tells whether docs/PROTOCOL.md lets a guest send these bytes to yamux.
func allowed(in []byte) bool {
	const data, goAway, syn = 0, 3, 1
	for len(in) >= 12 {
		version, kind, flags, size := in[0], in[1], in[3], binary.BigEndian.Uint32(in[8:])
		in = in[12:]
		if version != 0 || kind > goAway || flags&syn != 0 || kind == data && size > 256<<10 {
			return false
		}
		if kind == data {
			in = in[min(int(size), len(in)):]
		}
	}
	return true
}

// The fence lets through what is allowed and nothing else, however the bytes
// arrive.
func FuzzFence(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x04data"), 5)
	f.Add([]byte("\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"), 3)
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x04\x00\x01"), 12)
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
		if want := allowed(in); (whole == nil) != want || (parts == nil) != want {
			t.Fatalf("at once: %v; in pieces of %d: %v; allowed: %v", whole, chunk, parts, want)
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
		conn := said{bytes.NewReader(in), new(atomic.Bool)}
		s, err := Open(ctx, conn, slog.New(slog.DiscardHandler))
		if ctx.Err() != nil {
			t.Fatal("it hung")
		}
		if err == nil {
			err = s.Close()
		} else {
			checkError(t, err)
			err = nil
		}
		if err != nil || !conn.closed.Load() {
			t.Fatalf("the connection is not closed: %v", err)
		}
	})
}

// Whatever a guest says of its programs, each that it names can be.
func FuzzExecs(f *testing.F) {
	f.Add([]byte("\x17\x00\x00\x00\x00"))
	f.Add([]byte("\x17\x00\x00\x00\x13\x0a\x11\x0a\x0fex_0123456789ab"))
	f.Add([]byte("\x17\x00\x00\x00\x1b\x0a\x19\x0a\x0fex_0123456789ab\x10\x05\x22\x02\x28\x09\x2a\x02\x10\x03"))
	f.Add([]byte("\x16\x00\x00\x00\x07\x0a\x01x\x10\x02\x18\x05"))
	f.Fuzz(func(t *testing.T, in []byte) {
		stream := bytes.NewReader(in)
		list, err := readExecs(stream)
		if err != nil {
			checkError(t, err)
			if list != nil {
				t.Fatalf("an error came with %+v", list)
			}
			return
		}
		checkTaken(t, in, stream)
		for _, e := range list {
			if checkID(e.ID) != nil || e.Age < 0 || e.StdinBytes < 0 ||
				e.Stdout.First < 0 || e.Stdout.End < e.Stdout.First || e.Stderr.First < 0 || e.Stderr.End < e.Stderr.First {
				t.Fatalf("accepted %+v", e)
			}
			if x := e.Exit; x != nil && (x.Code < 0 || x.Code > 255 || x.Duration < 0 || x.Duration > e.Age ||
				x.Signal != 0 && x.Code != 128+x.Signal || x.TimedOut && x.Signal == 0 || e.StdinOpen) {
				t.Fatalf("impossible exit %+v of %+v", x, e)
			}
		}
	})
}

// A guest's word on how a program ended, from one who did not start it.
func FuzzAwait(f *testing.F) {
	f.Add([]byte("\x14\x00\x00\x00\x03\x28\xdd\x65"))
	f.Add([]byte("\x16\x00\x00\x00\x05\x0a\x01x\x10\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		stream := bytes.NewReader(in)
		exit, err := readExit(stream)
		if err != nil {
			checkError(t, err)
			if exit != (Exit{}) {
				t.Fatalf("an error came with %+v", exit)
			}
			return
		}
		checkTaken(t, in, stream)
		if exit.Code < 0 || exit.Code > 255 || exit.Duration < 0 || exit.Signal != 0 && exit.Code != 128+exit.Signal {
			t.Fatalf("impossible exit %+v", exit)
		}
	})
}

// The output that a guest sends is what its data frames hold, up to the end or
// an error.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("\x20\x00\x00\x00\x0342\n\x21\x00\x00\x00\x00"), 2)
	f.Add([]byte("\x20\x00\x00\x00\x01x\x16\x00\x00\x00\x07\x0a\x01x\x10\x02\x18\x05"), 100)
	f.Add([]byte("\x20\x00\x01\x00\x01x"), 1)
	f.Fuzz(func(t *testing.T, in []byte, chunk int) {
		chunk = 1 + chunk&0xffff
		conn := said{bytes.NewReader(in), new(atomic.Bool)}
		o := &outputReader{
			ctx: t.Context(), stream: conn, stop: func() bool { return true },
			frames: agentv1.NewFrameReader(conn, agentv1.FrameData, agentv1.FrameEnd, agentv1.FrameError),
		}
		var got []byte
		var err error
		for buf := make([]byte, chunk); err == nil; {
			var n int
			n, err = o.Read(buf)
			got = append(got, buf[:n]...)
		}
		if !errors.Is(err, io.EOF) {
			checkError(t, err)
		}
		var want []byte
		ended := false
		for rest := in; len(rest) >= 5 && !ended; {
			kind, size := agentv1.FrameType(rest[0]), binary.BigEndian.Uint32(rest[1:])
			rest = rest[5:]
			if kind == agentv1.FrameEnd && size == 0 {
				ended = true
			}
			if kind != agentv1.FrameData || size == 0 || size > agentv1.MaxData || int(size) > len(rest) {
				break
			}
			want = append(want, rest[:size]...)
			rest = rest[size:]
		}
		if !bytes.Equal(got, want) || errors.Is(err, io.EOF) != ended {
			t.Fatalf("%q with %v, want %q with an end: %v", got, err, want, ended)
		}
		if o.Close() != nil || !conn.closed.Load() {
			t.Fatal("the stream is not closed")
		}
	})
}
