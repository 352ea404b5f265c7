package agent_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cfg agenttest.Config) *agent.Session {
	t.Helper()
	s, end, err := agenttest.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return s
}

func TestExec(t *testing.T) {
	s := open(t, agenttest.Config{})
	long := strings.Repeat("# a comment that makes the code long\n", 5000) + "echo $((6*7))"
	tests := []struct {
		name           string
		cmd            agent.Command
		stdin          string
		stdout, stderr string
		exit           agent.Exit
	}{
		{name: "answer", cmd: agent.Command{Code: "echo $((6*7))"}, stdout: "42\n"},
		{name: "exit code", cmd: agent.Command{Code: "exit 255"}, exit: agent.Exit{Code: 255}},
		{name: "signal", cmd: agent.Command{Code: "kill -SEGV $$"}, exit: agent.Exit{Code: 139, Signal: 11}},
		{name: "137 without a signal", cmd: agent.Command{Code: "exit 137"}, exit: agent.Exit{Code: 137}},
		{name: "stderr apart", cmd: agent.Command{Code: "echo out; echo err >&2"}, stdout: "out\n", stderr: "err\n"},
		{name: "stdin", cmd: agent.Command{Code: "tr a-z A-Z"}, stdin: "hello\n", stdout: "HELLO\n"},
		{name: "stdin ends", cmd: agent.Command{Code: "cat; echo ended"}, stdout: "ended\n"},
		{name: "code too long for an argument", cmd: agent.Command{Code: long}, stdout: "42\n"},
		{name: "code that is not UTF-8", cmd: agent.Command{Code: "printf '\xff\xfe'"}, stdout: "\xff\xfe"},
		{name: "argv", cmd: agent.Command{Argv: []string{"printf", "%s-%s", "a b", "c"}}, stdout: "a b-c"},
		{name: "env and dir", cmd: agent.Command{
			Argv: []string{"sh", "-c", "echo $FOO; pwd"}, Env: []string{"FOO=bar"}, Dir: "/usr",
		}, stdout: "bar\n/usr\n"},
		{name: "limit not reached", cmd: agent.Command{Code: "exit 3", Timeout: time.Minute}, exit: agent.Exit{Code: 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			exit, err := s.Exec(t.Context(), tt.cmd, agent.Stdio{
				Stdin: strings.NewReader(tt.stdin), Stdout: &stdout, Stderr: &stderr,
			})
			if err != nil {
				t.Fatal(err)
			}
			if exit.Duration <= 0 {
				t.Errorf("duration is %v", exit.Duration)
			}
			exit.Duration = 0
			if exit != tt.exit {
				t.Errorf("exit is %+v, want %+v", exit, tt.exit)
			}
			if got := stdout.String(); got != tt.stdout {
				t.Errorf("stdout is %q, want %q", got, tt.stdout)
			}
			if got := stderr.String(); got != tt.stderr {
				t.Errorf("stderr is %q, want %q", got, tt.stderr)
			}
		})
	}
}

func TestExecMovesBytesUnchanged(t *testing.T) {
	s := open(t, agenttest.Config{})
	in := make([]byte, 3<<20+17)
	_, _ = rand.Read(in)
	var out bytes.Buffer
	exit, err := s.Exec(t.Context(), agent.Command{Code: "cat"}, agent.Stdio{Stdin: bytes.NewReader(in), Stdout: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("exit %+v, error %v", exit, err)
	}
	if !bytes.Equal(out.Bytes(), in) {
		t.Errorf("%d bytes came back from %d, or others", out.Len(), len(in))
	}
}

func TestExecInterpreterMissing(t *testing.T) {
	s := open(t, agenttest.Config{Interpreter: "no-such-interpreter"})
	exit, err := s.Exec(t.Context(), agent.Command{Code: "1"}, agent.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if want := `start "no-such-interpreter": executable file not found in $PATH`; exit.StartError != want {
		t.Errorf("start error is %q, want %q", exit.StartError, want)
	}
}

// A program that ends without reading its input is reported at once, however
// much input is left.
func TestExecUnreadStdin(t *testing.T) {
	s := open(t, agenttest.Config{})
	for _, stdin := range map[string]io.Reader{
		"more than any buffer": bytes.NewReader(make([]byte, 4<<20)),
		"endless":              zeros{},
	} {
		exit, err := s.Exec(t.Context(), agent.Command{Code: "exit 7"}, agent.Stdio{Stdin: stdin})
		if err != nil || exit.Code != 7 {
			t.Errorf("exit %+v, error %v", exit, err)
		}
	}
}

// The same through a proxy that closes its socket while input still comes in:
// the kernel then resets the connection behind the exit.
func TestExecUnreadStdinThroughProxy(t *testing.T) {
	s := open(t, agenttest.Config{})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	const execs = 20
	proxied := make(chan struct{})
	go func() {
		defer close(proxied)
		for range execs {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stream, err := s.OpenStream(t.Context())
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(stream, conn) }()
			_, _ = io.Copy(conn, stream)
			_ = conn.Close()
			_ = stream.Close()
		}
	}()
	for range execs {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		exit, err := agent.Exec(t.Context(), conn, agent.Command{Code: "exit 7"}, agent.Stdio{Stdin: zeros{}})
		if err != nil || exit.Code != 7 {
			t.Fatalf("exit %+v, error %v", exit, err)
		}
	}
	_ = l.Close()
	<-proxied
}

func TestExecReturnsThoughStdinBlocks(t *testing.T) {
	s := open(t, agenttest.Config{})
	r, w := io.Pipe()
	defer w.Close()
	exit, err := s.Exec(t.Context(), agent.Command{Code: "exit 7"}, agent.Stdio{Stdin: r})
	if err != nil || exit.Code != 7 {
		t.Errorf("exit %+v, error %v", exit, err)
	}
}

// Input that is not read and output that is not taken must not keep the agent
// from noticing that the host has gone.
func TestExecCancelKills(t *testing.T) {
	s := open(t, agenttest.Config{})
	tests := map[string]struct {
		code  string
		stdin io.Reader
	}{
		"sleeping":          {"sleep 300", nil},
		"not reading stdin": {"sleep 300", zeros{}},
		"writing for ever":  {"yes", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			pidFile := filepath.Join(dir, "pid")
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("the client hung up")
			time.AfterFunc(300*time.Millisecond, func() { cancel(why) })
			_, err := s.Exec(ctx, agent.Command{Code: "echo $$ > " + pidFile + "; exec " + tt.code}, agent.Stdio{Stdin: tt.stdin})
			if !errors.Is(err, why) {
				t.Errorf("error is %v, want the cause", err)
			}
			pid, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			waitGone(t, filepath.Join("/proc", strings.TrimSpace(string(pid))))
		})
	}
}

func waitGone(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
	}
	t.Errorf("%s is still there", path)
}

func TestExecTimeout(t *testing.T) {
	s := open(t, agenttest.Config{})
	began := time.Now()
	var out bytes.Buffer
	exit, err := s.Exec(t.Context(), agent.Command{Code: "echo before; sleep 300", Timeout: 200 * time.Millisecond}, agent.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if !exit.TimedOut || exit.Code != 137 || exit.Signal != 9 || out.String() != "before\n" {
		t.Errorf("exit is %+v, output %q", exit, out.String())
	}
	if took := time.Since(began); took > 1200*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

func TestExecWriterFails(t *testing.T) {
	s := open(t, agenttest.Config{})
	full := errors.New("the client took enough")
	_, err := s.Exec(t.Context(), agent.Command{Code: "yes"}, agent.Stdio{Stdout: failingWriter{full}})
	if !errors.Is(err, full) {
		t.Errorf("error is %v, want the writer's", err)
	}
	_, err = s.Exec(t.Context(), agent.Command{Code: "cat"}, agent.Stdio{Stdin: io.MultiReader(strings.NewReader("x"), failingReader{full})})
	if !errors.Is(err, full) {
		t.Errorf("error is %v, want the reader's", err)
	}
}

// What a slow reader has not taken when the program ends is not lost.
func TestExecSlowReader(t *testing.T) {
	s := open(t, agenttest.Config{})
	var out slowWriter
	exit, err := s.Exec(t.Context(), agent.Command{Code: "head -c 400000 /dev/zero"}, agent.Stdio{Stdout: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("exit %+v, error %v", exit, err)
	}
	if out.n != 400000 {
		t.Errorf("%d bytes of 400000 arrived", out.n)
	}
}

// A process left in the background neither holds the exec up nor is killed.
func TestExecBackgroundProcess(t *testing.T) {
	s := open(t, agenttest.Config{})
	file := filepath.Join(t.TempDir(), "later")
	began := time.Now()
	var out bytes.Buffer
	exit, err := s.Exec(t.Context(), agent.Command{
		Code: "(sleep 1; echo to nobody; echo alive > " + file + ") & echo started",
	}, agent.Stdio{Stdout: &out})
	if err != nil || exit.Code != 0 || out.String() != "started\n" {
		t.Fatalf("exit %+v, output %q, error %v", exit, out.String(), err)
	}
	if took := time.Since(began); took > 900*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if b, _ := os.ReadFile(file); string(b) == "alive\n" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the background process did not go on")
		}
	}
}

func TestExecsAtOnce(t *testing.T) {
	s := open(t, agenttest.Config{})
	errs := make(chan error)
	const n = 100 // more than the backlog
	for range n {
		go func() {
			exit, err := s.Exec(t.Context(), agent.Command{Code: "cat; exit 5"}, agent.Stdio{Stdin: strings.NewReader("x")})
			if err == nil && exit.Code != 5 {
				err = errors.New("wrong exit code")
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestConnectionLost(t *testing.T) {
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- agenttest.ServeConn(t.Context(), guest, agenttest.Config{}) }()
	s, err := agent.Open(t.Context(), host, discard())
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { _ = guest.Close() })
	began := time.Now()
	if exit, err := s.Exec(t.Context(), agent.Command{Code: "sleep 300"}, agent.Stdio{}); err == nil {
		t.Errorf("an exec whose VM died returned %+v", exit)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v to notice", took)
	}
	<-s.Done()
	if err := s.Ping(t.Context()); err == nil {
		t.Error("a dead session answered a ping")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-served
}

func TestOpenRefuses(t *testing.T) {
	t.Run("silent", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, _, err := agenttest.Open(ctx, agenttest.Config{Handle: agenttest.Silent}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("wrong version", func(t *testing.T) {
		if _, _, err := agenttest.Open(t.Context(), agenttest.Config{Handle: agenttest.WrongVersion}); !errors.Is(err, agent.ErrVersion) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("unread", func(t *testing.T) {
		host, guest := net.Pipe()
		defer guest.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := agent.Open(ctx, host, discard()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestHello(t *testing.T) {
	s := open(t, agenttest.Config{Interpreter: "python3", BuildID: "v1"})
	h := s.Hello()
	if h.GetProtocolVersion() != agentv1.ProtocolVersion || h.GetInterpreter() != "python3" || h.GetBuildId() != "v1" {
		t.Errorf("hello is %v", h)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWriteFile(t *testing.T) {
	s := open(t, agenttest.Config{})
	path := filepath.Join(t.TempDir(), "file")
	want := make([]byte, 1<<20+3)
	_, _ = rand.Read(want)
	if err := s.WriteFile(t.Context(), path, 0o750, bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, error %v", len(got), err)
	}
	if info, _ := os.Stat(path); info.Mode() != 0o750 {
		t.Errorf("mode is %v", info.Mode())
	}

	broken := errors.New("the disk broke")
	err = s.WriteFile(t.Context(), path, 0o644, io.MultiReader(strings.NewReader("new"), failingReader{broken}))
	if !errors.Is(err, broken) {
		t.Errorf("error is %v, want the reader's", err)
	}
	// Refused at once, though there is more to send than any window holds.
	err = s.WriteFile(t.Context(), "/no/such/dir/file", 0o644, io.LimitReader(zeros{}, 8<<20))
	if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("error is %v", err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
		t.Error("a transfer that broke off changed the file")
	}
	waitEntries(t, filepath.Dir(path), 1)
}

// waitEntries waits until dir has n entries: the guest clears up after the host
// has gone.
func waitEntries(t *testing.T, dir string, n int) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v is in %s, want %d entries; error %v", entries, dir, n, err)
		}
	}
}

func TestDial(t *testing.T) {
	s := open(t, agenttest.Config{})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c) // until the dialler ends its side
			_ = c.Close()
		}
		served <- err
	}()
	conn, err := s.Dial(t.Context(), "unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, error %v", len(got), err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := s.Dial(t.Context(), "unix", "/no/such/socket"); err == nil {
		t.Error("dialled nothing")
	}
	if _, err := s.Dial(t.Context(), "udp", "127.0.0.1:1"); err == nil {
		t.Error("dialled an unknown network")
	}
}

// A session may be closed while others begin operations on it.
func TestCloseMeetsOperations(t *testing.T) {
	for range 20 {
		s, end, err := agenttest.Open(t.Context(), agenttest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var pinging sync.WaitGroup
		for range 4 {
			pinging.Go(func() {
				for s.Ping(t.Context()) == nil {
				}
			})
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		pinging.Wait()
		end()
	}
}
