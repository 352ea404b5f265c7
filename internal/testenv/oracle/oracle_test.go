package oracle

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// firstUser is the beginning of a range of user ids that nobody has.
const firstUser = 0x656d7000

// scene is where a violation is planted.
type scene struct {
	cfg Config
	// made is a directory of Config.Dirs, kept one of Config.Guarded with a file.
	made, kept string
}

// plant does something that the oracle has to see, and undoes it with the test.
type plant func(t *testing.T, s *scene)

// violations are what the oracle has to see: each has a verdict, and a part of
// what is said about it.
var violations = []struct {
	name    string
	root    bool // only root can do it
	verdict Verdict
	want    string
	plant   plant
}{
	{"process", false, Leak, " planted uid ", func(t *testing.T, _ *scene) {
		path := filepath.Join(t.TempDir(), "planted")
		must(t, os.Symlink(sleep, path))
		startAs(t, path, &syscall.SysProcAttr{})
	}},
	{"open file", false, Leak, "descriptors, file", func(t *testing.T, s *scene) {
		f, err := os.Open(filepath.Join(s.kept, "file"))
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
	}},
	{"open pipe", false, Leak, "descriptors, pipe", func(t *testing.T, _ *scene) {
		r, w, err := os.Pipe()
		must(t, err)
		t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	}},
	{"open device", false, Leak, "descriptors, device", func(t *testing.T, _ *scene) {
		f, err := os.Open("/dev/null")
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
	}},
	{"goroutine", false, Leak, "goroutines", func(t *testing.T, _ *scene) {
		end, ended := make(chan struct{}), make(chan struct{})
		go func() { defer close(ended); <-end }()
		t.Cleanup(func() { close(end); <-ended })
	}},
	{"memory", false, Leak, "memory grew by", func(t *testing.T, s *scene) {
		mem, err := unix.Mmap(-1, 0, int(s.cfg.Growth)+8<<20, unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
		must(t, err)
		t.Cleanup(func() { _ = unix.Munmap(mem) })
	}},
	{"file", false, Leak, "made/left", func(t *testing.T, s *scene) { write(t, filepath.Join(s.made, "left"), "") }},
	{"bytes", false, Leak, "bytes in", func(t *testing.T, s *scene) { write(t, filepath.Join(s.made, "grows"), "more than before") }},
	{"directory", false, Leak, "made/dir", func(t *testing.T, s *scene) { must(t, os.Mkdir(filepath.Join(s.made, "dir"), 0o700)) }},
	{"Unix socket", false, Leak, "Unix socket ", func(t *testing.T, s *scene) {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		must(t, err)
		t.Cleanup(func() { _ = l.Close() })
	}},
	{"network namespace", true, Leak, "network namespace net:", func(t *testing.T, _ *scene) {
		start(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
	}},
	{"mount", true, Leak, " - tmpfs planted ", func(t *testing.T, _ *scene) {
		dir := t.TempDir()
		must(t, unix.Mount("planted", dir, "tmpfs", 0, ""))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}},
	{"cgroup", true, Leak, "/emberd-planted", func(t *testing.T, _ *scene) {
		dir := filepath.Join(cgroup2(t), "emberd-planted")
		must(t, os.Mkdir(dir, 0o700))
		t.Cleanup(func() { _ = os.Remove(dir) })
	}},
	{"link", true, Leak, "link planted", apart(plantTap)},
	{"route", true, Leak, "route 192.0.2.0/24", apart(plantRoutes)},
	{"default route", true, Leak, "route invalid IP/0", apart(plantRoutes)},
	{"nftables table", true, Leak, `nftables table ["planted"]`, apart(plantRuleset)},
	{"nftables chain", true, Leak, `nftables chain ["planted" "chain"]`, apart(plantRuleset)},
	{"nftables rule", true, Leak, `nftables rule ["planted" "chain"`, apart(plantRuleset)},
	{"nftables set", true, Leak, `nftables set ["planted" "set"]`, apart(plantRuleset)},
	{"loop device", true, Leak, "loop device loop", plantLoop},
	{"content changed", false, Write, "kept/file", func(t *testing.T, s *scene) { write(t, filepath.Join(s.kept, "file"), "other") }},
	{"mode changed", false, Write, "kept/file", func(t *testing.T, s *scene) { must(t, os.Chmod(filepath.Join(s.kept, "file"), 0o666)) }},
	{"owner changed", true, Write, "kept/file", func(t *testing.T, s *scene) { must(t, os.Chown(filepath.Join(s.kept, "file"), firstUser, 0)) }},
	{"file added", false, Write, "kept/new", func(t *testing.T, s *scene) { write(t, filepath.Join(s.kept, "new"), "") }},
	{"file removed", false, Write, "kept/file", func(t *testing.T, s *scene) { must(t, os.Remove(filepath.Join(s.kept, "file"))) }},
	{"link turned", false, Write, "kept/link", func(t *testing.T, s *scene) {
		must(t, os.Remove(filepath.Join(s.kept, "link")))
		must(t, os.Symlink("/etc/passwd", filepath.Join(s.kept, "link")))
	}},
	{"VMM without namespaces", true, Escape, "is in the host's net namespace", func(t *testing.T, _ *scene) {
		start(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: firstUser + 1, Gid: firstUser + 1}})
	}},
	{"VMM on the host's mounts", true, Escape, "is in the host's mnt namespace", func(t *testing.T, _ *scene) {
		start(t, &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: firstUser + 2, Gid: firstUser + 2}, Cloneflags: unix.CLONE_NEWNET,
		})
	}},
	{"VMM in no cgroup", true, Escape, "is in no cgroup of a jail", func(t *testing.T, _ *scene) {
		start(t, &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: firstUser + 3, Gid: firstUser + 3},
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		})
	}},
	{"VMM with capabilities", true, Escape, "has capabilities", func(t *testing.T, _ *scene) {
		start(t, &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: firstUser + 4, Gid: firstUser + 4},
			Cloneflags:  unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			AmbientCaps: []uintptr{unix.CAP_NET_ADMIN},
		})
	}},
	{"kernel bug", true, Crash, "BUG: planted", func(t *testing.T, _ *scene) {
		must(t, os.WriteFile("/dev/kmsg", []byte("<3>BUG: planted by a test\n"), 0))
	}},
}

// Each violation is seen while it is there, and not before.
func TestViolationsAreSeen(t *testing.T) {
	for _, v := range violations {
		t.Run(v.name, func(t *testing.T) {
			if v.root && os.Geteuid() != 0 {
				t.Skip("only root can do that")
			}
			s := newScene(t)
			before, err := Take(s.cfg)
			must(t, err)
			for _, f := range since(t, before) {
				if f.Verdict == v.verdict && strings.Contains(f.What, v.want) {
					t.Fatalf("seen before it was there: %v", f)
				}
			}
			v.plant(t, s)
			for _, f := range since(t, before) {
				if f.Verdict == v.verdict && strings.Contains(f.What, v.want) {
					return
				}
			}
			t.Errorf("not seen; found %v", since(t, before))
		})
	}
}

func TestDeathOfTheDaemonIsSeen(t *testing.T) {
	daemon := start(t, &syscall.SysProcAttr{})
	before, err := Take(Config{Process: daemon.Process.Pid})
	must(t, err)
	must(t, daemon.Process.Kill())
	_ = daemon.Wait()
	want := Finding{Crash, fmt.Sprintf("the daemon (process %d) is gone", daemon.Process.Pid)}
	if found := since(t, before); !slices.Contains(found, want) {
		t.Errorf("not seen; found %v", found)
	}
}

func TestCanaryIsSeen(t *testing.T) {
	c := NewCanary()
	for name, text := range map[string]string{
		"plain":    "x" + c.Text + "y",
		"hex":      hex.EncodeToString([]byte(c.Text)),
		"base64":   base64.StdEncoding.EncodeToString([]byte(c.Text)),
		"base64+1": base64.StdEncoding.EncodeToString([]byte("x" + c.Text + "yy")),
		"base64+2": base64.StdEncoding.EncodeToString([]byte("xx" + c.Text + "y")),
	} {
		if found := c.Seen("output", []byte(text)); Judge(found) != Read {
			t.Errorf("%s: not seen", name)
		}
	}
	if found := c.Seen("output", []byte(NewCanary().Text)); len(found) > 0 {
		t.Errorf("another canary was taken for it: %v", found)
	}
	path := filepath.Join(t.TempDir(), "canary")
	must(t, c.Plant(path))
	text, err := os.ReadFile(path)
	if err != nil || Judge(c.Seen(path, text)) != Read {
		t.Errorf("planted %q, %v", text, err)
	}
}

func TestLogIsJudged(t *testing.T) {
	for _, tt := range []struct {
		log  string
		want Verdict
	}{
		{"level=INFO msg=one\nlevel=INFO msg=two\n", None},
		{"level=INFO msg=one\x1b[2Jtwo\n", Write},
		{"level=INFO msg=one\rlevel=INFO\n", Write},
		{"level=INFO msg=\xff\n", Write},
		{strings.Repeat("x", maxRecord+1), Write},
		{"panic: runtime error\n", Crash},
		{"level=ERROR msg=\"http: panic serving 127.0.0.1\"\n", Crash},
	} {
		if got := Judge(Log([]byte(tt.log))); got != tt.want {
			t.Errorf("%.60q: %s, want %s", tt.log, got, tt.want)
		}
	}
}

func TestNeighbourIsJudged(t *testing.T) {
	var n int
	slow := Watch(t.Context(), time.Millisecond, func(context.Context) error {
		n++
		if n == 3 {
			time.Sleep(30 * time.Millisecond)
		}
		return nil
	})
	broken := Watch(t.Context(), time.Millisecond, func(context.Context) error { return errors.New("no answer") })
	hung := Watch(t.Context(), time.Millisecond, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	time.Sleep(60 * time.Millisecond)

	s := slow.Stop()
	if Judge(s.Findings("it", 20*time.Millisecond)) != Neighbour || Judge(s.Findings("it", 10*time.Second)) != None {
		t.Errorf("slow: %v, max %v", s, s.Percentile(100))
	}
	if b := broken.Stop(); Judge(b.Findings("it", time.Hour)) != Neighbour {
		t.Errorf("broken: %v", b)
	}
	if h := hung.Stop(); Judge(h.Findings("it", 50*time.Millisecond)) != Neighbour || len(h.Errs) > 0 {
		t.Errorf("hung: %v", h)
	}
}

func TestJudgeIsTheWorst(t *testing.T) {
	if got := Judge([]Finding{{Leak, ""}, {Read, ""}, {Neighbour, ""}}); got != Read {
		t.Errorf("got %s", got)
	}
	if got := Judge(nil); got != None {
		t.Errorf("got %s", got)
	}
}

func newScene(t *testing.T) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{made: filepath.Join(dir, "made"), kept: filepath.Join(dir, "kept")}
	for _, d := range []string{s.made, s.kept} {
		must(t, os.Mkdir(d, 0o700))
	}
	write(t, filepath.Join(s.kept, "file"), "kept")
	write(t, filepath.Join(s.made, "grows"), "")
	must(t, os.Symlink("file", filepath.Join(s.kept, "link")))
	s.cfg = Config{
		Process: os.Getpid(), Growth: 16 << 20,
		Dirs: []string{s.made, filepath.Join(dir, "none")}, Guarded: []string{s.kept},
		FirstUser: firstUser, Users: 16,
	}
	return s
}

func since(t *testing.T, before *Snapshot) []Finding {
	t.Helper()
	now, err := Take(before.cfg)
	must(t, err)
	return now.Since(before)
}

// sleep is a program that does nothing.
const sleep = "/bin/sleep"

// start runs a process that does nothing until the test is over.
func start(t *testing.T, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	return startAs(t, sleep, attr)
}

func startAs(t *testing.T, path string, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(path, "600")
	cmd.SysProcAttr = attr
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// cgroup2 is where cgroup v2 is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	t.Skip("no cgroup v2 here")
	return ""
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
