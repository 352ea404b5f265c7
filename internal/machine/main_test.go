package machine

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent/agenttest"
)

// The test binary is its own supervisor and its own QEMU: the first by an
// argument, the second by the name it is called with.
const (
	superviseArg = "supervise-for-test"
	// fakeEnv says how the fake QEMU misbehaves.
	fakeEnv = "EMBERD_FAKE_QEMU"
)

func TestMain(m *testing.M) {
	switch {
	case filepath.Base(os.Args[0]) == qemuProgram:
		fakeQEMU(os.Getenv(fakeEnv))
	case len(os.Args) > 1 && os.Args[1] == superviseArg:
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := Supervise(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			os.Exit(1)
		}
	default:
		goleak.VerifyTestMain(m)
	}
}

// fakeQEMU is a machine without a VM: its PID 1 answers on the port, and what
// runs in it is made up.
func fakeQEMU(fault string) {
	fmt.Println("console: the kernel boots")
	if fault == "panic" {
		fmt.Println("console: Kernel panic - not syncing")
		os.Exit(0)
	}
	conn, err := net.FileConn(os.NewFile(3, "port"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if fault == "mute" {
		_, _ = io.Copy(io.Discard, conn)
	}
	guest := &fakeGuest{fault: fault, files: make(map[string]bool)}
	_ = agenttest.ServeConn(context.Background(), conn, agenttest.Config{Handle: guest.handle})
}

// fakeGuest is what the fake machine's PID 1 knows.
type fakeGuest struct {
	fault string

	mu    sync.Mutex
	files map[string]bool
}

func (g *fakeGuest) handle(stream net.Conn) {
	w := agentv1.NewFrameWriter(stream)
	_, payload, err := agentv1.NewFrameReader(stream, agentv1.FrameRequest).Next()
	req := new(agentv1.Request)
	if err != nil || proto.Unmarshal(payload, req) != nil {
		return
	}
	switch op := req.GetOp().(type) {
	case *agentv1.Request_Hello:
		_ = w.WriteMessage(agentv1.FrameHello, &agentv1.HelloReply{ProtocolVersion: agentv1.ProtocolVersion})
	case *agentv1.Request_WriteFile:
		frames := agentv1.NewFrameReader(stream, agentv1.FrameData, agentv1.FrameEnd)
		for t := agentv1.FrameData; t != agentv1.FrameEnd; {
			if t, _, err = frames.Next(); err != nil {
				return
			}
		}
		g.mu.Lock()
		g.files[op.WriteFile.GetPath()] = true
		g.mu.Unlock()
		_ = w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
	case *agentv1.Request_Dial:
		if g.fault == "nodaemon" {
			_ = w.WriteMessage(agentv1.FrameError, &agentv1.Error{Message: "connection refused"})
			return
		}
		_ = w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
		conn := agentv1.NewDataConn(stream)
		if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.URL.Path), req.URL.Path)
		}
	case *agentv1.Request_Exec:
		g.exec(stream, w, op.Exec.GetCommand().GetArgv())
	}
}

// exec plays the programs that a machine has, and those that were copied in:
// they exit with the status that is their first argument, or never.
func (g *fakeGuest) exec(stream net.Conn, w *agentv1.FrameWriter, argv []string) {
	g.mu.Lock()
	there := g.files[argv[0]]
	g.mu.Unlock()
	exit := new(agentv1.Exit)
	switch {
	case argv[0] == guestDaemon && g.fault == "nodaemon":
		_ = w.Write(agentv1.FrameStderr, []byte("emberd: pack python: file missing\n"))
		exit.Code = 3
	case argv[0] == guestDaemon, there && argv[1] == "hang":
		untilClosed(stream)
		return
	case slices.Equal(argv, []string{guestInit, "poweroff"}):
		defer time.AfterFunc(50*time.Millisecond, func() { os.Exit(0) })
	case len(argv) == 3 && argv[1] == "remove":
		g.mu.Lock()
		delete(g.files, argv[2])
		g.mu.Unlock()
	case there:
		code, _ := strconv.Atoi(argv[1])
		exit.Code = int32(code)
		_ = w.Write(agentv1.FrameStdout, []byte("ran "+strings.Join(argv[1:], " ")))
	case argv[0] == "count-files":
		g.mu.Lock()
		exit.Code = int32(len(g.files))
		g.mu.Unlock()
	default:
		exit.StartError = "no such program"
	}
	_ = w.WriteMessage(agentv1.FrameExit, exit)
}

// untilClosed reads until the host has closed the stream.
func untilClosed(stream net.Conn) {
	frames := agentv1.NewFrameReader(stream, agentv1.FrameStdin, agentv1.FrameStdinEnd)
	for {
		if _, _, err := frames.Next(); err != nil {
			return
		}
	}
}
