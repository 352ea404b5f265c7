package server_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial serves one connection and returns a session on it. A connection that is
// cut ends everything the server did for it, or the test hangs.
func dial(t *testing.T) *yamux.Session {
	t.Helper()
	return dialTo(t, server.Config{Interpreter: proc.Interpreter{Path: "/bin/sh"}})
}

func dialTo(t *testing.T, cfg server.Config) *yamux.Session {
	t.Helper()
	host, guest := net.Pipe()
	s := server.New(cfg)
	served := make(chan error, 1)
	go func() { served <- s.ServeConn(context.WithoutCancel(t.Context()), guest) }()
	config := yamux.DefaultConfig()
	config.EnableKeepAlive, config.LogOutput = false, io.Discard
	session, err := yamux.Client(host, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = session.Close()
		if err := <-served; err != nil {
			t.Errorf("a host that goes away is an error: %v", err)
		}
		s.Close()
	})
	return session
}

func request(t *testing.T, session *yamux.Session, req *agentv1.Request) (net.Conn, *agentv1.FrameWriter) {
	t.Helper()
	stream, err := session.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() })
	_ = stream.SetDeadline(time.Now().Add(10 * time.Second))
	w := agentv1.NewFrameWriter(stream)
	if err := w.WriteMessage(agentv1.FrameRequest, req); err != nil {
		t.Fatal(err)
	}
	return stream, w
}

func execOf(code string) *agentv1.Request {
	return &agentv1.Request{Op: &agentv1.Request_Exec{Exec: &agentv1.Exec{
		Program: &agentv1.Exec_Code{Code: []byte(code)},
	}}}
}

// readError reads the error that ends stream.
func readError(t *testing.T, stream net.Conn) string {
	t.Helper()
	r := agentv1.NewFrameReader(stream, agentv1.FrameError)
	_, payload, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	var m agentv1.Error
	if err := proto.Unmarshal(payload, &m); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream goes on after its error: %v", err)
	}
	return m.GetMessage()
}

func TestRefusedRequests(t *testing.T) {
	session := dial(t)
	tests := map[string]*agentv1.Request{
		"neither code nor a command": {Op: &agentv1.Request_Exec{Exec: &agentv1.Exec{}}},
		"no program named": {Op: &agentv1.Request_Exec{Exec: &agentv1.Exec{
			Program: &agentv1.Exec_Command{Command: &agentv1.Command{}},
		}}},
		"too long": {Op: &agentv1.Request_Exec{Exec: &agentv1.Exec{
			Program: &agentv1.Exec_Code{Code: []byte("x")}, TimeoutMs: 1<<64 - 1,
		}}},
		"not absolute":    {Op: &agentv1.Request_WriteFile{WriteFile: &agentv1.WriteFile{Path: "x"}}},
		"unknown network": {Op: &agentv1.Request_Dial{Dial: &agentv1.Dial{Network: "udp"}}},
	}
	for want, req := range tests {
		stream, _ := request(t, session, req)
		if got := readError(t, stream); !strings.Contains(got, want) {
			t.Errorf("error is %q, want %q", got, want)
		}
	}
	for name, bytes := range map[string]string{
		"read request":   "\x02\x00\x00\x00\x01x",
		"decode request": "\x01\x00\x00\x00\x01\xff",
	} {
		stream, err := session.Open()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(stream, bytes)
		if got := readError(t, stream); !strings.Contains(got, name) {
			t.Errorf("error is %q, want %q", got, name)
		}
		_ = stream.Close()
	}
}

// A host that sends more input than the window lets it, or more after its end,
// does not make the agent's memory grow.
func TestInputHasAWindow(t *testing.T) {
	session := dial(t)
	t.Run("window", func(t *testing.T) {
		stream, w := request(t, session, execOf("sleep 300"))
		go func() {
			for w.Write(agentv1.FrameStdin, make([]byte, 32<<10)) == nil {
			}
		}()
		r := agentv1.NewFrameReader(stream, agentv1.FrameStdinAck, agentv1.FrameError)
		// What fits into the pipe is taken before the agent complains.
		for {
			kind, payload, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if kind == agentv1.FrameError {
				if !strings.Contains(string(payload), "more input than was asked for") {
					t.Errorf("error is %q", payload)
				}
				return
			}
		}
	})
	t.Run("end", func(t *testing.T) {
		stream, w := request(t, session, execOf("sleep 300"))
		_ = w.Write(agentv1.FrameStdinEnd, nil)
		_ = w.Write(agentv1.FrameStdin, []byte("x"))
		if got := readError(t, stream); !strings.Contains(got, "input after its end") {
			t.Errorf("error is %q", got)
		}
	})
}

// A full disk is told of a program that failed, and of no other.
func TestFullDisk(t *testing.T) {
	full := false
	session := dialTo(t, server.Config{Interpreter: proc.Interpreter{Path: "/bin/sh"}, FilesFull: func() bool { return full }})
	for _, tt := range []struct {
		code string
		full bool
		want bool
	}{
		{"exit 1", false, false},
		{"exit 1", true, true},
		{"kill -TERM $$", true, true},
		{"exit 0", true, false},
	} {
		full = tt.full
		stream, _ := request(t, session, execOf(tt.code))
		_, payload, err := agentv1.NewFrameReader(stream, agentv1.FrameExit).Next()
		if err != nil {
			t.Fatal(err)
		}
		var exit agentv1.Exit
		if err := proto.Unmarshal(payload, &exit); err != nil {
			t.Fatal(err)
		}
		if got := exit.GetHit().GetDisk(); got != tt.want {
			t.Errorf("%s with a disk that is full: %v; the host is told %v", tt.code, tt.full, got)
		}
	}
}

// When serving ends, so do the programs and the connections.
func TestServeEnds(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{Interpreter: proc.Interpreter{Path: "/bin/sh"}})
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()

	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	config := yamux.DefaultConfig()
	config.EnableKeepAlive, config.LogOutput = false, io.Discard
	session, err := yamux.Client(conn, config)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	stream, w := request(t, session, execOf("echo $$; exec sleep 300"))
	_ = w.Write(agentv1.FrameStdinEnd, nil)
	_, pid, err := agentv1.NewFrameReader(stream, agentv1.FrameStdout).Next()
	if err != nil {
		t.Fatal(err)
	}
	proc := filepath.Join("/proc", strings.TrimSpace(string(pid)))
	if _, err := os.Stat(proc); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	// Serve waits for what it runs, so there is nothing to wait for here.
	if _, err := os.Stat(proc); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the program outlived the server: %v", err)
	}
}
