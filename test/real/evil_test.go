package real

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/boot"
	"github.com/emberd/emberd/internal/guest/identity"
	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/reaper"
	"github.com/emberd/emberd/internal/guest/server"
	"github.com/emberd/emberd/internal/vsock"
)

// What this test binary is as PID 1 of a microVM, by the interpreter of the
// pack: an agent that breaks the protocol, or one that keeps to it, for the
// neighbour of the first.
// Or one that floods its network, whatever else it does.
const (
	evilAgent   = "evil-agent"
	goodPrefix  = "good"
	floodPrefix = "flood"
)

// isGuest tells whether this binary was booted to be one of those.
func isGuest(cmdline string) bool {
	return strings.Contains(cmdline, "emberd.interpreter="+evilAgent) || strings.Contains(cmdline, "emberd.interpreter="+goodPrefix+"/") || isFlood(cmdline)
}

// isFlood tells whether it was booted to flood its network.
func isFlood(cmdline string) bool {
	return strings.Contains(cmdline, "emberd.interpreter="+floodPrefix+"/")
}

// runGuest is the main of PID 1. It does not return.
func runGuest(cmdline string) {
	if isFlood(cmdline) {
		go floodForever() // for as long as the microVM is there
	}
	boot.Halt(serveGuest())
}

func serveGuest() error {
	params, err := boot.Run()
	if err != nil {
		return err
	}
	l, err := vsock.Listen(agentv1.Port)
	if err != nil {
		return err
	}
	sh, ok := strings.CutPrefix(params.Interpreter, goodPrefix)
	if !ok {
		sh, ok = strings.CutPrefix(params.Interpreter, floodPrefix)
	}
	if ok {
		dead := reaper.NewInit()
		var reaping sync.WaitGroup
		reaping.Go(func() { dead.Run(context.Background()) })
		return server.New(server.Config{
			Interpreter: proc.Interpreter{Path: sh}, BuildID: "good", Reaper: dead, CgroupRoot: boot.ProgramsCgroup, Arm: identity.New().Take,
		}).Serve(context.Background(), l)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			misserve(conn)
		}()
	}
}

// misserve says hello as it should, and does what the code of each exec tells
// it.
func misserve(conn net.Conn) {
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive, cfg.LogOutput = false, io.Discard
	session, err := yamux.Server(conn, cfg)
	if err != nil {
		return
	}
	defer func() { _ = session.Close() }()
	for {
		stream, err := session.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = stream.Close() }()
			_, payload, err := agentv1.NewFrameReader(stream, agentv1.FrameRequest).Next()
			var req agentv1.Request
			if err != nil || proto.Unmarshal(payload, &req) != nil {
				return
			}
			if exec := req.GetExec(); exec != nil {
				misbehave(string(exec.GetCode()), conn, stream)
				return
			}
			w := agentv1.NewFrameWriter(stream)
			if req.GetHello() != nil {
				_ = w.WriteMessage(agentv1.FrameHello,
					&agentv1.HelloReply{ProtocolVersion: agentv1.ProtocolVersion, BuildId: evilAgent})
			} else {
				_ = w.WriteMessage(agentv1.FrameDone, &agentv1.Done{})
			}
			_, _ = io.Copy(io.Discard, stream)
		}()
	}
}

// forged is what an agent says that wants to be believed by whoever reads a log
// or a terminal.
const forged = "no\nlevel=INFO msg=\"sandbox created\" sandbox_id=sb_000000000000\r\x1b[2J\x1b]0;owned\x07\xff"

// misbehave answers an exec in the way that its code names.
func misbehave(how string, conn io.Writer, stream net.Conn) {
	w := agentv1.NewFrameWriter(stream)
	raw := func(s string) { _, _ = io.WriteString(stream, s) }
	exit := func() { _ = w.WriteMessage(agentv1.FrameExit, &agentv1.Exit{}) }
	rest := func() { _, _ = io.Copy(io.Discard, stream) }
	switch how {
	case "4 GiB frame":
		raw("\x11\xff\xff\xff\xff")
		for err := error(nil); err == nil; {
			_, err = stream.Write(make([]byte, agentv1.MaxData))
		}
	case "two exits":
		exit()
		exit()
	case "unknown frame":
		raw("\x77\x00\x00\x00\x01x")
		rest()
	case "impossible exit":
		_ = w.WriteMessage(agentv1.FrameExit, &agentv1.Exit{Code: -1})
		rest()
	case "end without exit":
		_ = w.Write(agentv1.FrameStdout, []byte("all is well"))
	case "forged error":
		_ = w.WriteMessage(agentv1.FrameError, &agentv1.Error{Message: strings.ToValidUTF8(forged, "?")})
		rest()
	case "half a frame":
		raw("\x11\x00\x00\x01\x00half")
		rest()
	case "a byte at a time":
		for _, b := range []byte(strings.Repeat("\x11\x00\x00\x00\x01x", 1000)) {
			if _, err := stream.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	case "endless output":
		for err := error(nil); err == nil; {
			err = w.Write(agentv1.FrameStdout, make([]byte, agentv1.MaxData))
		}
	case "forged console":
		for range 50 {
			_, _ = fmt.Fprint(os.Stderr, forged)
		}
		boot.Halt(fmt.Errorf("%s", forged))
	case "10,000 streams":
		// Bare headers of new streams, written past yamux.
		for id := range byte(250) {
			for n := range byte(40) {
				_, _ = conn.Write([]byte{0, 1, 0, 1, 0, 0, id, 2 * n, 0, 0, 0, 0})
			}
		}
		rest()
	default:
		exit()
	}
}
