package agent_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
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

// Whatever a guest answers that the protocol does not allow is an error and
// never an exit code.
func TestHostileExec(t *testing.T) {
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
	}
	for name, answer := range tests {
		for stdin, io := range map[string]agent.Stdio{"no input": {}, "input": {Stdin: strings.NewReader("")}} {
			host, guest := net.Pipe()
			go func() {
				defer guest.Close()
				go func() { _, _ = guest.Write([]byte(answer)); _ = guest.Close() }()
				agenttest.Silent(guest)
			}()
			got, err := agent.Exec(t.Context(), host, agent.Command{Code: "x"}, io)
			if err == nil {
				t.Errorf("%s, %s: the answer is %+v", name, stdin, got)
			} else if strings.ContainsAny(err.Error(), "\n\x1b") {
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
