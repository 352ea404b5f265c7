package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/agent/agenttest"
	"github.com/emberd/emberd/internal/paths"
)

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", "A", "a/b", "..", "-x", strings.Repeat("x", 33)} {
		if m, err := Locate(name, paths.Data(dir), paths.Run(dir)); err == nil {
			t.Errorf("name %q gave %+v", name, m)
		}
	}
	m, err := Locate("two-2", paths.Data(dir), paths.Run(dir))
	if err != nil || m.Disks != filepath.Join(dir, "machine", "two-2") || m.Run != filepath.Join(dir, "machine", "two-2") {
		t.Errorf("got %+v, %v", m, err)
	}
	// A supervisor works elsewhere.
	t.Chdir(dir)
	if m, err := Locate("a", "data", "run"); err != nil || m.Disks != filepath.Join(dir, "data/machine/a") || m.Run != filepath.Join(dir, "run/machine/a") {
		t.Errorf("relative roots: %+v, %v", m, err)
	}
}

// TestLocateElsewhere has roots where nobody can write, root included.
func TestLocateElsewhere(t *testing.T) {
	home := t.TempDir()
	closed := filepath.Join(home, "file", "dir")
	write(t, filepath.Dir(closed), "not a directory")
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	for xdg, run := range map[string]string{"": "cache/emberd/run/machine/a", "rt": "rt/emberd/machine/a"} {
		if xdg != "" {
			xdg = filepath.Join(home, xdg)
		}
		t.Setenv("XDG_RUNTIME_DIR", xdg)
		m, err := Locate("a", paths.Data(closed), paths.Run(closed))
		if err != nil || m.Disks != filepath.Join(home, "cache/emberd/machine/a") || m.Run != filepath.Join(home, run) {
			t.Errorf("with XDG_RUNTIME_DIR=%q: %+v, %v", xdg, m, err)
		}
	}
}

func TestLogFileKeepsTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const limit = 1000
	log, err := openLog(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for i := range 500 {
		line := fmt.Sprintf("line %d\n", i)
		if n, err := io.WriteString(log, line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || len(data) > limit || len(data) < limit/2 || !strings.HasSuffix(string(data), "line 498\nline 499\n") {
		t.Fatalf("%d bytes, %v, ending %q", len(data), err, data[max(0, len(data)-30):])
	}
	huge := strings.Repeat("x", 5*limit) + "end"
	if n, err := io.WriteString(log, huge); n != len(huge) || err != nil {
		t.Fatal(n, err)
	}
	if data, err = os.ReadFile(path); err != nil || len(data) > limit || !strings.HasSuffix(string(data), "xend") {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, "line %d\r\n", i)
	}
	text.WriteString("\x1b[2Jclear\xff\nqemu: warning: TCG doesn't support requested feature: x\n\n")
	write(t, path, text.String())
	got := strings.Split(logTail(path), "\n")
	if len(got) != 40 || got[0] != "    line 61" || got[39] != "    [2Jclear?" {
		t.Errorf("got %q", got)
	}
	if got := logTail(path + "-missing"); got != "" {
		t.Errorf("missing log gave %q", got)
	}
}

func TestDiskRefresh(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	write(t, filepath.Join(src, "a"), "1")
	write(t, filepath.Join(src, "sub", "b"), "2")
	write(t, filepath.Join(src, ".lock"), "")
	var made []string // what was staged, each time
	d := disk{
		path: filepath.Join(dir, "disks", "d"), what: "test disk", content: map[string]string{"in": src}, byContent: true,
		make: func(_ context.Context, dst, staged string) error {
			var files []string
			err := filepath.WalkDir(staged, func(path string, e os.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					files = append(files, strings.TrimPrefix(path, staged))
				}
				return err
			})
			made = append(made, strings.Join(files, " "))
			return errors.Join(err, os.WriteFile(dst, []byte("disk"), 0o600))
		},
	}
	if err := os.Mkdir(filepath.Dir(d.path), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		change func() error
		times  int
	}{
		{"new", func() error { return nil }, 1},
		{"the same", func() error { return nil }, 1},
		{"touched", func() error { return os.Chtimes(filepath.Join(src, "a"), time.Now(), time.Now().Add(time.Hour)) }, 1},
		{"a hidden file", func() error { return os.WriteFile(filepath.Join(src, ".x"), nil, 0o600) }, 1},
		{"other content", func() error { return os.WriteFile(filepath.Join(src, "a"), []byte("3"), 0o600) }, 2},
		{"other mode", func() error { return os.Chmod(filepath.Join(src, "a"), 0o600) }, 3},
		{"one more", func() error { return os.WriteFile(filepath.Join(src, "c"), nil, 0o600) }, 4},
		{"key lost", func() error { return os.Remove(d.keyFile()) }, 5},
		{"disk lost", func() error { return os.Remove(d.path) }, 6},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		if err := d.refresh(t.Context(), nil); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if len(made) != step.times {
			t.Errorf("%s: made %d times, want %d", step.name, len(made), step.times)
		}
	}
	if made[0] != "/in/a /in/sub/b" {
		t.Errorf("staged %q", made[0])
	}
	if entries, _ := os.ReadDir(filepath.Dir(d.path)); len(entries) != 2 {
		t.Errorf("left %v", entries)
	}
}

func TestRealDisks(t *testing.T) {
	m, cfg := newMachine(t, "")
	if err := os.MkdirAll(m.Disks, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.buildDisks(t.Context(), cfg, nil); err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command("unsquashfs", "-lln", m.systemDisk()).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-rwxr-xr-x 0/0", "/bin/emberd-init", "/var/lib/emberd", "/proc"} {
		if !strings.Contains(string(list), want) {
			t.Errorf("system disk has no %q:\n%s", want, list)
		}
	}
	if out, err := exec.Command(filepath.Join(filepath.Dir(mke2fs()), "e2fsck"), "-fn", m.dataDisk()).CombinedOutput(); err != nil {
		t.Errorf("data disk: %v\n%s", err, out)
	}
	info, err := os.Stat(m.dataDisk())
	if err != nil || info.Size() != dataDiskSize {
		t.Errorf("data disk: %d bytes, %v", info.Size(), err)
	}
}

// TestForm keeps the one form in which nested emulation is stable.
func TestForm(t *testing.T) {
	args := strings.Join(Machine{Name: "a", Disks: "/d,1", Run: "/r"}.qemuArgs("/k"), " ")
	for _, want := range []string{
		"-M q35 -accel tcg,tb-size=512 -cpu EPYC,+svm,+npt -smp 1 -m 6G -nodefaults -no-user-config -no-reboot",
		"console=ttyS0 quiet panic=-1 mitigations=off nohz=off highres=off",
		"file=/d,,1/data.ext4",
	} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in %s", want, args)
		}
	}
	if strings.Contains(args, "netdev") || strings.Contains(args, "-net ") {
		t.Errorf("the machine has a network card: %s", args)
	}
}

func TestCheckStatic(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	write(t, script, "#!/bin/sh\n")
	for path, want := range map[string]string{
		program(t):  "",
		script:      "not an ELF executable",
		"/bin/true": "needs shared libraries",
		"/nowhere":  "no such file",
	} {
		err := checkStatic(path)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

// sessionWith opens a session to a guest that handles streams with handle.
func sessionWith(t *testing.T, handle func(net.Conn)) *agent.Session {
	t.Helper()
	near, file, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	var guest sync.WaitGroup
	guest.Go(func() { _ = agenttest.ServeConn(context.Background(), far, agenttest.Config{Handle: handle}) })
	session, err := agent.Open(t.Context(), near, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		session.Close()
		guest.Wait()
	})
	return session
}

// TestWatch has PID 1 answer some times and then no more.
func TestWatch(t *testing.T) {
	const answers, beat, after = 5, 20 * time.Millisecond, 300 * time.Millisecond
	var asked atomic.Int32
	session := sessionWith(t, func(stream net.Conn) {
		_, payload, err := agentv1.NewFrameReader(stream, agentv1.FrameRequest).Next()
		if err != nil || proto.Unmarshal(payload, new(agentv1.Request)) != nil {
			return
		}
		if asked.Add(1) > answers {
			untilClosed(stream)
			return
		}
		_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameHello,
			&agentv1.HelloReply{ProtocolVersion: agentv1.ProtocolVersion})
	})
	s := &supervisor{session: session, beat: beat, stallAfter: after, qemu: &qemu{cmd: thisProcess(t), exited: make(chan struct{})}}
	life, end := context.WithCancelCause(t.Context())
	defer end(nil)
	began := time.Now()
	s.watch(life, end)
	took := time.Since(began)
	if cause := context.Cause(life); !errors.Is(cause, errStalled) {
		t.Errorf("cause: %v", cause)
	}
	if n := asked.Load(); n <= answers || took < after {
		t.Errorf("gave up after %d questions and %v", n, took)
	}
}

// TestWatchLost has the connection break, with QEMU and without.
func TestWatchLost(t *testing.T) {
	session := sessionWith(t, func(stream net.Conn) {
		_ = agentv1.NewFrameWriter(stream).WriteMessage(agentv1.FrameHello,
			&agentv1.HelloReply{ProtocolVersion: agentv1.ProtocolVersion})
		untilClosed(stream)
	})
	session.Close()
	ended := &qemu{cmd: thisProcess(t), exited: make(chan struct{}), err: errors.New("QEMU has ended")}
	close(ended.exited)
	for _, tt := range []struct {
		qemu *qemu
		want error
	}{
		{&qemu{cmd: thisProcess(t), exited: make(chan struct{})}, errLost},
		{ended, ended.err},
	} {
		s := &supervisor{session: session, beat: time.Millisecond, stallAfter: time.Minute, qemu: tt.qemu}
		life, end := context.WithCancelCause(t.Context())
		s.watch(life, end)
		if cause := context.Cause(life); !errors.Is(cause, tt.want) {
			t.Errorf("cause %v, want %v", cause, tt.want)
		}
		end(nil)
	}
}

// TestForwardEnds has connections open when forwarding ends.
func TestForwardEnds(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	dialled := make(chan net.Conn, 1)
	dial := func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		dialled <- far
		return near, nil
	}
	ctx, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { forward(ctx, ln, dial, slog.New(slog.DiscardHandler)) })

	conn, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	upstream := <-dialled
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(upstream, got); err != nil || string(got) != "ping" {
		t.Fatalf("upstream got %q, %v", got, err)
	}
	if _, err := upstream.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "pong" {
		t.Fatalf("client got %q, %v", got, err)
	}

	end()
	running.Wait() // hangs if a connection stays open
	if n, err := conn.Read(got); n != 0 || err == nil {
		t.Errorf("the client's connection is still open: %d, %v", n, err)
	}
	if _, err := net.Dial("unix", ln.Addr().String()); err == nil {
		t.Error("still listening")
	}
}

func TestStartTime(t *testing.T) {
	mine, err := startTime(os.Getpid())
	if err != nil || mine == "" {
		t.Fatal(mine, err)
	}
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }()
	other, err := startTime(sleeper.Process.Pid)
	if err != nil || other == mine || slices.ContainsFunc([]rune(other), func(r rune) bool { return r < '0' || r > '9' }) {
		t.Errorf("start time %q, mine %q, %v", other, mine, err)
	}
}

// thisProcess stands for a QEMU that runs.
func thisProcess(t *testing.T) *exec.Cmd {
	t.Helper()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return &exec.Cmd{Process: self}
}
