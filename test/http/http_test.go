// Package http tests emberd's API against the clients it was not made for: web
// pages in a real browser, a fuzzer that goes by the published schema, clients
// that are slow, and bytes that are no HTTP.
//
// Each test has the real daemon in a process of its own, so that what it costs
// can be measured, over fake VMMs. Tests that need programs this host may not
// have run where -http is given; `make test-http` does that.
package http

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
)

var httpTier = flag.Bool("http", false, "run the tests that need a browser and a fuzzer, or much time")

// needs skips the test unless -http was given, and fails it when a program is
// missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	if !*httpTier {
		t.Skip("run by `make test-http`")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatal(err)
		}
	}
}

// dirEnv tells a test binary that it is to be the daemon, and where.
const dirEnv = "EMBERD_TEST_DAEMON"

func TestMain(m *testing.M) {
	fctest.Main()
	for env, run := range map[string]func(string) error{dirEnv: runDaemon, attackEnv: runAttack, bystanderEnv: runBystander} {
		value := os.Getenv(env)
		if value == "" {
			continue
		}
		if err := run(value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runDaemon is the daemon's process. It prints its address when it is up.
func runDaemon(dir string) error {
	// The fakes that it starts are to be fakes, not daemons.
	if err := os.Unsetenv(dirEnv); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := daemon.NewConfig()
	cfg.Templates = false
	cfg.Listen, cfg.OnExit = "127.0.0.1:0", daemon.Stop
	cfg.DataDir, cfg.RunDir = paths.Data(filepath.Join(dir, "data")), paths.Run(filepath.Join(dir, "run"))
	cfg.Socket = cfg.RunDir.Socket()
	cfg.Init = os.Args[0]
	// Fakes have no interface, and the daemon's document is to say so.
	cfg.Egress.On = false
	cfg.Launcher = &fctest.Launcher{Dir: dir}
	// Fakes take nothing of what they are promised, and "no room" would be a
	// right answer that looks like a server's error.
	cfg.Capacity = engine.Capacity{Sandboxes: 1 << 20, MemoryMiB: 1 << 40, VCPUs: 1 << 20}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d, err := daemon.New(ctx, cfg)
	if err != nil {
		return err
	}
	// What it took to start is not to hide what a test makes it take.
	debug.FreeOSMemory()
	fmt.Println(d.Addr())
	return d.Run(ctx)
}

// server is a daemon in a process of its own.
type server struct {
	addr   string
	pid    int
	data   paths.Data
	client *client.Client // through the Unix socket, which nothing here keeps busy
}

// start starts a daemon that ends with the test. When interpreter is not empty
// it runs every program in place of the packs' own.
func start(t *testing.T, interpreter string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") //nolint:usetesting // its sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &server{data: fctest.Data(t, filepath.Join(dir, "data"))}
	if interpreter != "" {
		setInterpreter(t, s.data, interpreter)
	}
	p := startSelf(t, dirEnv, dir)
	s.addr, s.pid = p.line, p.pid
	s.client = client.New(client.UnixScheme + paths.Run(filepath.Join(dir, "run")).Socket())
	return s
}

// process is this program, being something else.
type process struct {
	pid  int
	line string // the first that it printed
	in   io.Closer
}

// startSelf starts this program with one more environment variable, and returns
// when it has printed a line. It ends with the test.
func startSelf(t *testing.T, env, value string) process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env+"="+value)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", env, err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s did not come up: %v", env, err)
	}
	return process{cmd.Process.Pid, strings.TrimSpace(line), in}
}

func setInterpreter(t *testing.T, data paths.Data, interpreter string) {
	t.Helper()
	for _, name := range []string{"python", "shell"} {
		b, err := os.ReadFile(data.PackManifest(name))
		var m pack.Manifest
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		m.Interpreter = interpreter
		if err == nil {
			b, err = json.Marshal(m)
		}
		if err == nil {
			err = os.WriteFile(data.PackManifest(name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// rss is the daemon's memory in bytes.
func (s *server) rss(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// fds is how many files and connections the daemon has open.
func (s *server) fds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// create makes a sandbox.
func (s *server) create(t *testing.T) string {
	t.Helper()
	id, err := s.client.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// raw sends bytes on a connection of their own and returns the first line of
// what comes back, whether the server closed the connection then, and when the
// line came.
func raw(t *testing.T, addr string, send io.Reader) (line string, closed bool, took time.Duration) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	began := time.Now()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// The server may not want to read it all.
		_, _ = io.Copy(conn, send)
	}()
	defer func() { <-sent }()
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(began.Add(5 * time.Second))
	in := bufio.NewReader(conn)
	line, _ = in.ReadString('\n')
	took = time.Since(began)
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, err = io.Copy(io.Discard, in)
	return strings.TrimSpace(line), !errors.Is(err, os.ErrDeadlineExceeded), took
}
