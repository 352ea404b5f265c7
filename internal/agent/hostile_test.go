package agent_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func frame(kind agentv1.FrameType, payload []byte) string {
	n := len(payload)
	return string([]byte{byte(kind), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + string(payload)
}

// bounded fails the test if it leaves a goroutine, or more than 16 MiB of
// memory, behind.
func bounded(t *testing.T) {
	t.Helper()
	rss := func() int64 {
		debug.FreeOSMemory()
		n, err := oracle.RSS(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	leaked := goleak.IgnoreCurrent()
	before := rss()
	t.Cleanup(func() {
		goleak.VerifyNone(t, leaked)
		if grown := rss() - before; grown > 16<<20 {
			t.Errorf("memory grew by %d KiB", grown>>10)
		}
	})
}

// Whatever a guest answers that the protocol does not allow is an error and
// never an exit code.
func TestHostileExec(t *testing.T) {
	bounded(t)
	exit := func(m *agentv1.Exit) string { return frame(agentv1.FrameExit, encode(t, m)) }
	good := exit(&agentv1.Exit{})
	tests := map[string]string{
		"nothing":              "",
		"output and no exit":   frame(agentv1.FrameStdout, []byte("x")),
		"two exits":            good + good,
		"output after exit":    good + frame(agentv1.FrameStdout, []byte("x")),
		"bytes after exit":     good + "\x00",
		"half a frame":         good[:3],
		"negative code":        exit(&agentv1.Exit{Code: -1}),
		"code 256":             exit(&agentv1.Exit{Code: 256}),
		"signal without 128":   exit(&agentv1.Exit{Code: 9, Signal: 9}),
		"signal 65":            exit(&agentv1.Exit{Code: 193, Signal: 65}),
		"negative signal":      exit(&agentv1.Exit{Code: 127, Signal: -1}),
		"time-out unlimited":   exit(&agentv1.Exit{Code: 137, Signal: 9, TimedOut: true}),
		"start error and code": exit(&agentv1.Exit{StartError: "x", Code: 1}),
		"exit not protobuf":    frame(agentv1.FrameExit, []byte{0xff}),
		"exit too long":        frame(agentv1.FrameExit, make([]byte, agentv1.MaxMessage+1)),
		"unknown frame":        frame(0x77, []byte("x")) + good,
		"frame of the host":    frame(agentv1.FrameStdin, []byte("x")) + good,
		"empty output":         frame(agentv1.FrameStdout, nil) + good,
		"output too long":      frame(agentv1.FrameStdout, make([]byte, agentv1.MaxData+1)) + good,
		"4 GiB of output":      "\x11\xff\xff\xff\xff",
		"took unsent input":    frame(agentv1.FrameStdinAck, []byte{0, 0, 1, 0}) + good,
		"done":                 frame(agentv1.FrameDone, nil),
		"error":                frame(agentv1.FrameError, encode(t, &agentv1.Error{Message: "no\nway\x1b[2J"})),
		"error not protobuf":   frame(agentv1.FrameError, []byte{0xff}),
		"error then exit":      frame(agentv1.FrameError, nil) + good,
		"exit before output":   good + frame(agentv1.FrameStdout, []byte("x")) + good,
		"code 2^31":            frame(agentv1.FrameExit, []byte{0x08, 0xff, 0xff, 0xff, 0xff, 0x07}),
		"code -1 in ten bytes": frame(agentv1.FrameExit, append([]byte{0x08}, bytes.Repeat([]byte{0xff}, 10)...)),
		"exit nested 10,000":   frame(agentv1.FrameExit, bytes.Repeat([]byte{0x63}, 10_000)),
		"start error not text": frame(agentv1.FrameExit, []byte{0x22, 0x02, 0xff, 0xfe}),
		"start error too long": frame(agentv1.FrameExit, append([]byte{0x22, 0xff, 0xff, 0x7f}, "x"...)),
		"start error timed":    exit(&agentv1.Exit{StartError: "x", TimedOut: true}),
		"start error lasted":   exit(&agentv1.Exit{StartError: "x", DurationUs: 1}),
		"hello":                frame(agentv1.FrameHello, nil) + good,
		"data":                 frame(agentv1.FrameData, []byte("x")) + good,
		"end":                  frame(agentv1.FrameEnd, nil) + good,
		"request":              frame(agentv1.FrameRequest, []byte("x")) + good,
		"frame type 0":         frame(0, nil) + good,
		"ack of nothing":       frame(agentv1.FrameStdinAck, nil) + good,
		"ack of 5 bytes":       frame(agentv1.FrameStdinAck, make([]byte, 5)) + good,
		"ack of 4 GiB":         frame(agentv1.FrameStdinAck, []byte{0xff, 0xff, 0xff, 0xff}) + good,
		"header only":          "\x11\x00\x00\x00\x05",
		"half the output":      "\x11\x00\x00\x00\x05ab",
		"escapes in error":     frame(agentv1.FrameError, encode(t, &agentv1.Error{Message: "\x1b]0;x\x07\u202e\u0085\r\nlevel=INFO"})),
		"zeros":                strings.Repeat("\x00", 1<<10),
		"text":                 "HTTP/1.1 200 OK\r\n\r\n",
	}
	for name, answer := range tests {
		for stdin, stdio := range map[string]agent.Stdio{"no input": {}, "input": {Stdin: strings.NewReader("")}} {
			host, guest := net.Pipe()
			go func() {
				defer guest.Close()
				go func() { _, _ = guest.Write([]byte(answer)); _ = guest.Close() }()
				agenttest.Silent(guest)
			}()
			got, err := agent.Exec(t.Context(), host, agent.Command{Code: "x"}, stdio)
			if err == nil {
				t.Errorf("%s, %s: the answer is %+v", name, stdin, got)
			} else if strings.ContainsFunc(err.Error(), unicode.IsControl) || len(err.Error()) > 4<<10 {
				t.Errorf("%s, %s: the guest wrote control characters into %q", name, stdin, err)
			}
		}
	}
}

func TestHostileDuration(t *testing.T) {
	s := open(t, agenttest.Config{Handle: agenttest.HelloThen(func(stream net.Conn) {
		_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameExit, &agentv1.Exit{DurationUs: 1<<64 - 1})
	})})
	began := time.Now()
	exit, err := s.Exec(t.Context(), agent.Command{Code: "x"}, agent.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if exit.Duration < 0 || exit.Duration > time.Since(began) {
		t.Errorf("duration is %v", exit.Duration)
	}
}

// A guest that floods the host with output is not listened to any longer than
// the caller wants.
func TestHostileFlood(t *testing.T) {
	bounded(t)
	s := open(t, agenttest.Config{Handle: agenttest.HelloThen(func(stream net.Conn) {
		w := agentv1.NewFrameWriter(stream)
		for w.Write(agentv1.FrameStdout, make([]byte, agentv1.MaxData)) == nil {
		}
	})})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.Exec(ctx, agent.Command{Code: "x"}, agent.Stdio{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// yamux would start a goroutine for each ping, and keep each stream that a guest
// opens.
func TestHostileSession(t *testing.T) {
	bounded(t)
	header := func(kind, flags byte, stream, length uint32) string {
		return string([]byte{0, kind, 0, flags,
			byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream),
			byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)})
	}
	tests := map[string]string{
		"pings":          strings.Repeat(header(2, 1, 0, 7), 1000),
		"stream":         header(1, 1, 2, 0),
		"data stream":    header(0, 1, 2, 4) + "data",
		"huge data":      header(0, 0, 1, 1<<31),
		"past window":    header(0, 0, 99, 256<<10+1),
		"wrong version":  "\x01" + header(1, 0, 1, 0)[1:],
		"unknown type":   header(4, 0, 0, 0),
		"http":           "HTTP/1.1 400 Bad Request\r\n\r\n",
		"window by half": header(1, 0, 1, 0)[:7],
		"streams":        strings.Repeat(header(1, 1, 2, 0)+header(1, 1, 4, 0), 5000),
		"host's stream":  header(1, 1, 1, 0),
		"ack and SYN":    header(1, 3, 1, 0),
		"window 4 GiB":   header(1, 2, 1, 1<<32-1) + header(1, 0, 1, 1<<32-1) + header(1, 0, 1, 1<<32-1),
		"unknown stream": strings.Repeat(header(1, 0, 77, 1), 1000),
		"stray data":     header(0, 0, 77, 4) + "data",
		"reset":          header(1, 8, 1, 0),
		"close":          header(1, 4, 1, 0),
		"go away":        header(3, 0, 0, 0),
		"go away oddly":  header(3, 0, 0, 77),
		"all flags":      header(0, 0xfe, 1, 0),
		"half the data":  header(0, 2, 1, 100) + "half",
		"unasked pongs":  strings.Repeat(header(2, 2, 0, 7), 1000),
		"zeros":          strings.Repeat("\x00", 64<<10),
		"ones":           strings.Repeat("\xff", 64<<10),
		"nothing":        "",
	}
	for name, bytes := range tests {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer guest.Close()
			go agenttest.Silent(guest)
			go func() { _, _ = guest.Write([]byte(bytes)); _ = guest.Close() }()
			before := runtime.NumGoroutine()
			if s, err := agent.Open(t.Context(), host, discard()); err == nil {
				_ = s.Close()
				t.Error("a session was opened")
			}
			if n := runtime.NumGoroutine(); n > before+10 {
				t.Errorf("%d goroutines, %d before", n, before)
			}
		})
	}
}

// A guest that does not go on, or hardly, costs its caller no more time than the
// caller has, and other streams nothing.
func TestHostileSlowness(t *testing.T) {
	header := string([]byte{byte(agentv1.FrameStdout), 0, 1, 0, 0})
	tests := map[string]func(stream net.Conn){
		"silence":          agenttest.Silent,
		"half a header":    func(c net.Conn) { _, _ = c.Write([]byte(header[:3])); agenttest.Silent(c) },
		"half a payload":   func(c net.Conn) { _, _ = c.Write([]byte(header + "half")); agenttest.Silent(c) },
		"a byte at a time": func(c net.Conn) { drip(c, strings.Repeat(header+"x", 1000)) },
		"empty frames":     func(c net.Conn) { drip(c, strings.Repeat(frame(agentv1.FrameStdout, []byte("x")), 1000)) },
	}
	for name, handle := range tests {
		t.Run(name, func(t *testing.T) {
			bounded(t)
			var hostile atomic.Bool
			hostile.Store(true)
			s := open(t, agenttest.Config{Handle: agenttest.HelloThen(func(stream net.Conn) {
				if hostile.Swap(false) {
					handle(stream)
					return
				}
				_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameExit, &agentv1.Exit{Code: 7})
			})})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			if exit, err := s.Exec(ctx, agent.Command{Code: "x"}, agent.Stdio{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("exit %+v, %v", exit, err)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
			if exit, err := s.Exec(t.Context(), agent.Command{Code: "x"}, agent.Stdio{}); err != nil || exit.Code != 7 {
				t.Errorf("the next exec: %+v, %v", exit, err)
			}
		})
	}
}

// drip sends text a byte at a time until nobody takes it.
func drip(w io.Writer, text string) {
	for _, b := range []byte(text) {
		if _, err := w.Write([]byte{b}); err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A guest that says nothing at all, or half of it, is given up with its caller.
func TestHostileGreeting(t *testing.T) {
	hello := func(m *agentv1.HelloReply) string { return frame(agentv1.FrameHello, encode(t, m)) }
	tests := map[string]string{
		"nothing":         "",
		"version 0":       hello(&agentv1.HelloReply{}),
		"version 2":       hello(&agentv1.HelloReply{ProtocolVersion: 2}),
		"version 2^31":    hello(&agentv1.HelloReply{ProtocolVersion: 1 << 31}),
		"long build id":   hello(&agentv1.HelloReply{ProtocolVersion: 1, BuildId: strings.Repeat("x", 129)}),
		"long name":       hello(&agentv1.HelloReply{ProtocolVersion: 1, Interpreter: strings.Repeat("/", 257)}),
		"long proof":      hello(&agentv1.HelloReply{ProtocolVersion: 1, Proof: make([]byte, 33)}),
		"16 KiB and more": frame(agentv1.FrameHello, make([]byte, agentv1.MaxMessage+1)),
		"not protobuf":    frame(agentv1.FrameHello, []byte{0xff}),
		"not UTF-8":       frame(agentv1.FrameHello, []byte{0x08, 0x01, 0x12, 0x02, 0xff, 0xfe}),
		"exit":            frame(agentv1.FrameExit, nil),
		"error":           frame(agentv1.FrameError, encode(t, &agentv1.Error{Message: "\x1b[31mno\r\n"})),
		"half a header":   "\x10\x00",
		"half a hello":    hello(&agentv1.HelloReply{ProtocolVersion: 1})[:6],
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			bounded(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			s, end, err := agenttest.Open(ctx, agenttest.Config{Handle: func(stream net.Conn) {
				_, _ = stream.Write([]byte(answer))
				agenttest.Silent(stream)
			}})
			if err == nil {
				end()
				t.Fatalf("a session was opened: %v", s.Hello())
			}
			if strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("the guest wrote control characters into %q", err)
			}
		})
	}
}
