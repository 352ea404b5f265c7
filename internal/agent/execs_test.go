package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
)

const execID = "ex_0123456789ab"

// output reads the output of a program up to its end.
func output(t *testing.T, s *agent.Session, id string, from agent.Stream, offset int64, follow bool) (string, error) {
	t.Helper()
	r, err := s.ReadExec(t.Context(), id, from, offset, follow)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func start(t *testing.T, s *agent.Session, cmd agent.Command, stdin string, open bool) {
	t.Helper()
	if err := s.StartExec(t.Context(), cmd, []byte(stdin), open); err != nil {
		t.Fatal(err)
	}
}

// A program that was started and left is there with all that it wrote and its
// real exit code.
func TestDetachedExec(t *testing.T) {
	s := open(t, agenttest.Config{})
	start(t, s, agent.Command{ID: execID, Code: "cat; echo err >&2; exit 7", Timeout: time.Minute}, "hello\n", false)
	exit, err := s.AwaitExec(t.Context(), execID)
	if err != nil || exit.Code != 7 || exit.Duration <= 0 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	for _, follow := range []bool{false, true} {
		if got, err := output(t, s, execID, agent.Stdout, 0, follow); got != "hello\n" || err != nil {
			t.Errorf("stdout %q, %v", got, err)
		}
		if got, err := output(t, s, execID, agent.Stdout, 4, follow); got != "o\n" || err != nil {
			t.Errorf("stdout from 4 on: %q, %v", got, err)
		}
		if got, err := output(t, s, execID, agent.Stdout, 6, follow); got != "" || err != nil {
			t.Errorf("stdout from its end on: %q, %v", got, err)
		}
		if _, err := output(t, s, execID, agent.Stdout, 7, follow); !errors.Is(err, agent.ErrBeyond) {
			t.Errorf("stdout beyond its end: %v", err)
		}
	}
	if got, err := output(t, s, execID, agent.Stderr, 0, false); got != "err\n" || err != nil {
		t.Errorf("stderr %q, %v", got, err)
	}
	state, err := s.ExecState(t.Context(), execID)
	if err != nil || state.Exit == nil || state.Exit.Code != 7 || state.Age < state.Exit.Duration {
		t.Fatalf("%+v, %v", state, err)
	}
	state.Exit, state.Age = nil, 0
	if want := (agent.ExecState{
		ID: execID, Stdout: agent.Span{End: 6}, Stderr: agent.Span{End: 4}, StdinBytes: 6,
	}); state != want {
		t.Errorf("%+v, want %+v", state, want)
	}
	if list, err := s.Execs(t.Context()); err != nil || len(list) != 1 || list[0].ID != execID {
		t.Errorf("%+v, %v", list, err)
	}
}

// What cannot be done is said for what it is.
func TestExecErrors(t *testing.T) {
	s := open(t, agenttest.Config{})
	const other = "ex_ffffffffffff"
	start(t, s, agent.Command{ID: execID, Code: "exit 0"}, "", true)
	if _, err := s.AwaitExec(t.Context(), execID); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		do   func() error
		want error
	}{
		"await nobody":  {func() error { _, err := s.AwaitExec(t.Context(), other); return err }, agent.ErrNoExec},
		"look nobody":   {func() error { _, err := s.ExecState(t.Context(), other); return err }, agent.ErrNoExec},
		"read nobody":   {func() error { _, err := output(t, s, other, agent.Stdout, 0, true); return err }, agent.ErrNoExec},
		"feed nobody":   {func() error { return s.FeedExec(t.Context(), other, nil, true) }, agent.ErrNoExec},
		"signal nobody": {func() error { return s.SignalExec(t.Context(), other, 15) }, agent.ErrNoExec},
		"feed ended":    {func() error { return s.FeedExec(t.Context(), execID, nil, true) }, agent.ErrExecEnded},
		"signal ended":  {func() error { return s.SignalExec(t.Context(), execID, 15) }, agent.ErrExecEnded},
	} {
		if err := tt.do(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	for _, id := range []string{"", "ex_", "ex_0123456789AB", "sb_0123456789ab", "ex_0123456789ab0"} {
		if err := s.StartExec(t.Context(), agent.Command{ID: id, Code: "exit 0"}, nil, false); err == nil {
			t.Errorf("%q is an id", id)
		}
	}
	if err := s.StartExec(t.Context(), agent.Command{ID: execID, Code: "exit 0"}, nil, false); err == nil {
		t.Error("an id was used twice")
	}
	if _, err := s.Exec(t.Context(), agent.Command{ID: execID, Code: "exit 0"}, agent.Stdio{}); err == nil {
		t.Error("an id was used twice")
	}
	if err := s.StartExec(t.Context(), agent.Command{ID: other, Argv: []string{"no-such-program"}}, nil, true); err != nil {
		t.Error(err)
	}
	if state, err := s.ExecState(t.Context(), other); err != nil || state.Exit == nil || state.Exit.StartError == "" {
		t.Errorf("a program that cannot be started: %+v, %v", state, err)
	}
}

func TestFeedExec(t *testing.T) {
	s := open(t, agenttest.Config{})
	start(t, s, agent.Command{ID: execID, Code: "cat"}, "1\n", true)
	for _, in := range []string{"2\n", "", "3\n"} {
		if err := s.FeedExec(t.Context(), execID, []byte(in), false); err != nil {
			t.Fatal(err)
		}
	}
	if state, err := s.ExecState(t.Context(), execID); err != nil || !state.StdinOpen || state.StdinBytes != 6 || state.Exit != nil {
		t.Errorf("%+v, %v", state, err)
	}
	if err := s.FeedExec(t.Context(), execID, []byte("4\n"), true); err != nil {
		t.Fatal(err)
	}
	if err := s.FeedExec(t.Context(), execID, []byte("5\n"), false); !errors.Is(err, agent.ErrExecEnded) {
		t.Errorf("input after its end: %v", err)
	}
	if got, err := output(t, s, execID, agent.Stdout, 0, true); got != "1\n2\n3\n4\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// Input that nobody reads is refused whole when there is too much of it, and its
// room is there again when the program has ended.
func TestFeedExecHasALimit(t *testing.T) {
	s := open(t, agenttest.Config{})
	piece := make([]byte, 1<<20)
	start(t, s, agent.Command{ID: execID, Code: "sleep 60"}, "", true)
	for range 3 {
		err := s.FeedExec(t.Context(), execID, piece, false)
		if errors.Is(err, agent.ErrInputFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	state, err := s.ExecState(t.Context(), execID)
	if err != nil || state.StdinBytes == 0 || state.StdinBytes > 2<<20 || state.StdinBytes%(1<<20) != 0 {
		t.Errorf("%+v, %v", state, err)
	}
	if err := s.SignalExec(t.Context(), execID, 9); err != nil {
		t.Fatal(err)
	}
	if exit, err := s.AwaitExec(t.Context(), execID); err != nil || exit.Signal != 9 {
		t.Errorf("%+v, %v", exit, err)
	}
	start(t, s, agent.Command{ID: "ex_ffffffffffff", Code: "head -c 1 | wc -c"}, string(piece), false)
	if got, err := output(t, s, "ex_ffffffffffff", agent.Stdout, 0, true); strings.TrimSpace(got) != "1" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSignalExec(t *testing.T) {
	s := open(t, agenttest.Config{})
	for i, tt := range []struct {
		code   string
		signal int
		want   agent.Exit
	}{
		{"echo ready; sleep 60", 15, agent.Exit{Code: 143, Signal: 15}},
		{"trap 'exit 5' INT; echo ready; sleep 60 & wait", 2, agent.Exit{Code: 5}},
		{"trap '' TERM; echo ready; sleep 60", 9, agent.Exit{Code: 137, Signal: 9}},
	} {
		id := fmt.Sprintf("ex_%012x", i)
		start(t, s, agent.Command{ID: id, Code: tt.code}, "", false)
		r, err := s.ReadExec(t.Context(), id, agent.Stdout, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		if err := s.SignalExec(t.Context(), id, tt.signal); err != nil {
			t.Fatal(err)
		}
		exit, err := s.AwaitExec(t.Context(), id)
		exit.Duration = 0
		if err != nil || exit != tt.want {
			t.Errorf("%s: %+v, %v, want %+v", tt.code, exit, err, tt.want)
		}
	}
}

// A host that goes away in the middle, and one that is started after it, have all
// of the output between them, and the exit.
func TestExecOutlivesItsSession(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var guest sync.WaitGroup
	guest.Go(func() { _ = agenttest.Serve(ctx, l, agenttest.Config{}) })
	defer guest.Wait()
	defer cancel()
	session := func() *agent.Session {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := agent.Open(t.Context(), conn, discard())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}

	const code = "i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); sleep 0.01; done; read x; echo $x; exit 3"
	var want strings.Builder
	for i := range 100 {
		fmt.Fprintln(&want, i)
	}
	for name, begin := range map[string]func(s *agent.Session, id string){
		"waiting": func(s *agent.Session, id string) {
			in, feeding := io.Pipe() // whose end never comes
			defer feeding.Close()
			_, err := s.Exec(t.Context(), agent.Command{ID: id, Code: code}, agent.Stdio{Stdin: in, Stdout: io.Discard})
			if err == nil {
				t.Error("it ended")
			}
		},
		"detached": func(s *agent.Session, id string) {
			start(t, s, agent.Command{ID: id, Code: code}, "", true)
		},
	} {
		id := fmt.Sprintf("ex_%012x", len(name))
		first := session()
		var beginning sync.WaitGroup
		beginning.Go(func() { begin(first, id) })
		var got bytes.Buffer
		for got.Len() < 40 {
			r, err := first.ReadExec(t.Context(), id, agent.Stdout, int64(got.Len()), true)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.CopyN(&got, r, 20)
			_ = r.Close()
			if err != nil && !errors.Is(err, agent.ErrNoExec) { // it may not have begun
				t.Fatal(err)
			}
		}
		_ = first.Close()
		beginning.Wait()

		second := session()
		if err := second.FeedExec(t.Context(), id, []byte("fed\n"), true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		rest, err := output(t, second, id, agent.Stdout, int64(got.Len()), true)
		if all := got.String() + rest; all != want.String()+"fed\n" || err != nil {
			t.Errorf("%s: %q, %v", name, all, err)
		}
		if exit, err := second.AwaitExec(t.Context(), id); err != nil || exit.Code != 3 {
			t.Errorf("%s: %+v, %v", name, exit, err)
		}
		_ = second.Close()
	}
}

// Who reads from where nothing is any more is told so, also in the middle.
func TestOutputThatIsGone(t *testing.T) {
	s := open(t, agenttest.Config{})
	start(t, s, agent.Command{ID: execID, Code: "head -c 4000000 /dev/zero; read x"}, "", true)
	slow, err := s.ReadExec(t.Context(), execID, agent.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	var state agent.ExecState
	for deadline := time.Now().Add(10 * time.Second); state.Stdout.End < 4000000; {
		if state, err = s.ExecState(t.Context(), execID); err != nil || time.Now().After(deadline) {
			t.Fatal(state, err)
		}
	}
	if kept := state.Stdout.End - state.Stdout.First; kept > 1<<20 || kept < 1<<20-32<<10 {
		t.Errorf("%d bytes are kept", kept)
	}
	_, err = output(t, s, execID, agent.Stdout, state.Stdout.First-1, false)
	if gone, ok := errors.AsType[*agent.GoneError](err); !ok || gone.First != state.Stdout.First {
		t.Errorf("before the first byte: %v", err)
	}
	// Some of it was on its way when the rest went.
	if n, err := io.Copy(io.Discard, slow); n >= state.Stdout.First || err == nil {
		t.Errorf("a slow reader had %d bytes, %v", n, err)
	} else if _, ok := errors.AsType[*agent.GoneError](err); !ok {
		t.Errorf("a slow reader was told %v", err)
	}
	if got, err := output(t, s, execID, agent.Stdout, state.Stdout.First, false); int64(len(got)) != 4000000-state.Stdout.First || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := s.FeedExec(t.Context(), execID, nil, true); err != nil {
		t.Error(err)
	}
}

// Whatever a guest answers about programs that the protocol does not allow is an
// error.
func TestHostileExecs(t *testing.T) {
	bounded(t)
	list := func(states ...*agentv1.ExecState) string {
		return frame(agentv1.FrameExecs, encode(t, &agentv1.ExecList{Execs: states}))
	}
	many := make([]*agentv1.ExecState, agentv1.MaxExecs+1)
	for i := range many {
		many[i] = &agentv1.ExecState{Id: fmt.Sprintf("ex_%012x", i)}
	}
	state := func(change func(*agentv1.ExecState)) string {
		m := &agentv1.ExecState{Id: execID}
		change(m)
		return list(m)
	}
	tests := map[string]string{
		"nothing":          "",
		"half":             list(many[0])[:4],
		"done":             frame(agentv1.FrameDone, nil),
		"exit":             frame(agentv1.FrameExit, nil),
		"too many":         list(many...),
		"too long":         "\x17\x00\xff\xff\xff",
		"not protobuf":     frame(agentv1.FrameExecs, []byte{0xff}),
		"no id":            list(&agentv1.ExecState{}),
		"another's":        list(many[1]),
		"none":             list(),
		"foreign id":       list(&agentv1.ExecState{Id: "../../etc"}),
		"listed twice":     list(many[0], many[0]),
		"endless input":    state(func(m *agentv1.ExecState) { m.StdinBytes = 1 << 63 }),
		"backwards":        state(func(m *agentv1.ExecState) { m.Stdout = &agentv1.Span{First: 2, End: 1} }),
		"beyond int64":     state(func(m *agentv1.ExecState) { m.Stderr = &agentv1.Span{End: 1 << 63} }),
		"code 256":         state(func(m *agentv1.ExecState) { m.Exit = &agentv1.Exit{Code: 256} }),
		"time-out":         state(func(m *agentv1.ExecState) { m.Exit = &agentv1.Exit{Code: 137, Signal: 9, TimedOut: true} }),
		"error":            frame(agentv1.FrameError, encode(t, &agentv1.Error{Message: "\x1b[2J"})),
		"gone at 0":        frame(agentv1.FrameError, encode(t, &agentv1.Error{Code: agentv1.Error_GONE})),
		"gone beyond":      frame(agentv1.FrameError, encode(t, &agentv1.Error{Code: agentv1.Error_GONE, First: 1 << 63})),
		"unknown code":     frame(agentv1.FrameError, encode(t, &agentv1.Error{Code: 99})),
		"data":             frame(agentv1.FrameStdout, []byte("x")),
		"data without end": frame(agentv1.FrameData, []byte("x")),
		"data too long":    frame(agentv1.FrameData, make([]byte, agentv1.MaxData+1)),
		"exit in the data": frame(agentv1.FrameData, []byte("x")) + frame(agentv1.FrameExit, nil),
	}
	for name, answer := range tests {
		s := open(t, agenttest.Config{Handle: agenttest.HelloThen(func(stream net.Conn) {
			_, _ = stream.Write([]byte(answer))
		})})
		if name != "exit" {
			if exit, err := s.AwaitExec(t.Context(), execID); err == nil || exit != (agent.Exit{}) {
				t.Errorf("%s: exit %+v, %v", name, exit, err)
			}
		}
		if state, err := s.ExecState(t.Context(), execID); err == nil {
			t.Errorf("%s: state %+v", name, state)
		}
		if got, err := output(t, s, execID, agent.Stdout, 0, true); err == nil {
			t.Errorf("%s: output %q", name, got)
		}
		if name != "done" {
			if err := s.FeedExec(t.Context(), execID, nil, true); err == nil {
				t.Errorf("%s: it was fed", name)
			}
			if err := s.SignalExec(t.Context(), execID, 15); err == nil {
				t.Errorf("%s: it was signalled", name)
			}
			if err := s.StartExec(t.Context(), agent.Command{ID: execID, Code: "x"}, nil, false); err == nil {
				t.Errorf("%s: it was started", name)
			}
		}
	}
}

// A guest that floods a reader, or says nothing, is listened to no longer than
// the caller wants.
func TestHostileOutput(t *testing.T) {
	bounded(t)
	for name, handle := range map[string]func(net.Conn){
		"silence": agenttest.Silent,
		"flood": func(stream net.Conn) {
			w := agentv1.NewFrameWriter(stream)
			for w.Write(agentv1.FrameData, make([]byte, agentv1.MaxData)) == nil {
			}
		},
	} {
		s := open(t, agenttest.Config{Handle: agenttest.HelloThen(handle)})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		r, err := s.ReadExec(ctx, execID, agent.Stdout, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		_ = r.Close()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// A caller who wants no more output still learns how the program ended, and the
// output is there for whoever asks.
func TestExecLeave(t *testing.T) {
	s := open(t, agenttest.Config{})
	left := make(chan struct{})
	var got bytes.Buffer
	time.AfterFunc(300*time.Millisecond, func() { close(left) })
	exit, err := s.Exec(t.Context(), agent.Command{ID: execID, Code: "echo a; sleep 1; head -c 4000000 /dev/zero; exit 3"},
		agent.Stdio{Stdout: &got, Leave: left})
	if err != nil || exit.Code != 3 || got.String() != "a\n" {
		t.Errorf("exit %+v, %v, with %d bytes", exit, err, got.Len())
	}
	if state, err := s.ExecState(t.Context(), execID); err != nil || state.Stdout.End != 4000002 {
		t.Errorf("%+v, %v", state, err)
	}
}

// A guest that goes on with output that nobody wants is not listened to for as long
// as its program may run.
func TestHostileLeave(t *testing.T) {
	bounded(t)
	s := open(t, agenttest.Config{Handle: agenttest.HelloThen(func(stream net.Conn) {
		w := agentv1.NewFrameWriter(stream)
		for w.Write(agentv1.FrameStdout, make([]byte, agentv1.MaxData)) == nil {
		}
	})})
	left := make(chan struct{})
	time.AfterFunc(100*time.Millisecond, func() { close(left) })
	began := time.Now()
	if exit, err := s.Exec(t.Context(), agent.Command{ID: execID, Code: "x", Timeout: time.Hour}, agent.Stdio{Leave: left}); err == nil {
		t.Errorf("exit %+v", exit)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestExecOnce(t *testing.T) {
	s := open(t, agenttest.Config{})
	digest, another := []byte("one"), []byte("another")
	cmd := agent.Command{ID: execID, Code: "cat", Digest: digest}
	if _, err := s.ExecOnce(t.Context(), execID, digest); !errors.Is(err, agent.ErrNoExec) {
		t.Errorf("before it is started: %v", err)
	}
	start(t, s, cmd, "in", true)
	check := func(when string, ended bool) {
		t.Helper()
		state, err := s.ExecOnce(t.Context(), execID, digest)
		if err != nil || state.ID != execID || (state.Exit != nil) != ended {
			t.Errorf("%s: %+v, %v", when, state, err)
		}
		if _, err := s.ExecOnce(t.Context(), execID, another); !errors.Is(err, agent.ErrDiffers) {
			t.Errorf("%s, with another digest: %v", when, err)
		}
		for digest, want := range map[string]error{"one": agent.ErrExists, "another": agent.ErrDiffers, "": agent.ErrDiffers} {
			again := agent.Command{ID: execID, Code: "cat", Digest: []byte(digest)}
			if err := s.StartExec(t.Context(), again, []byte("in"), true); !errors.Is(err, want) {
				t.Errorf("%s it is started again with %q: %v", when, digest, err)
			}
			if _, err := s.Exec(t.Context(), again, agent.Stdio{}); !errors.Is(err, want) {
				t.Errorf("%s it is run again with %q: %v", when, digest, err)
			}
		}
	}
	check("while it runs", false)
	// Input that a start brought which was refused takes no room.
	if err := s.FeedExec(t.Context(), execID, make([]byte, 1<<20-2), true); err != nil {
		t.Error(err)
	}
	if exit, err := s.AwaitExec(t.Context(), execID); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	check("when it has ended", true)
	if err := s.StartExec(t.Context(), agent.Command{ID: "ex_000000000000", Code: "true", Digest: make([]byte, 65)}, nil, false); err == nil {
		t.Error("a digest of any length is taken")
	}
	if _, err := s.Exec(t.Context(), agent.Command{Code: "true", Digest: digest}, agent.Stdio{}); err == nil {
		t.Error("a digest without an id is taken")
	}
}
