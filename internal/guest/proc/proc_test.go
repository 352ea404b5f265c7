package proc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/reaper"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// each runs test with and, where this host lets us, without control groups.
func each(t *testing.T, test func(t *testing.T, r *proc.Runner, cgroups string)) {
	t.Helper()
	run := func(root string) func(*testing.T) {
		return func(t *testing.T) {
			r := proc.New(reaper.New(), root)
			t.Cleanup(r.Close)
			test(t, r, root)
		}
	}
	t.Run("process group", run(""))
	t.Run("cgroup", func(t *testing.T) { run(cgroupRoot(t))(t) })
}

// cgroupRoot makes a control group for the test, as the guest's root would be.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if fields[2] != "cgroup2" {
			continue
		}
		dir, err := os.MkdirTemp(fields[1], "emberd-test-") //nolint:usetesting // a control group, not a place for files
		if err != nil {
			t.Skipf("cgroup v2 cannot be used: %v", err)
		}
		t.Cleanup(func() {
			// The dead leave their group a moment after they were reaped.
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				children, _ := filepath.Glob(filepath.Join(dir, "exec-*"))
				for _, child := range children {
					_ = os.Remove(child)
				}
				if err := os.Remove(dir); err == nil || time.Now().After(deadline) {
					if err != nil {
						t.Error(err)
					}
					return
				}
			}
		})
		return dir
	}
	t.Skip("no cgroup v2 on this host")
	return ""
}

func shell(script string) proc.Command {
	return proc.Command{Argv: []string{"/bin/sh", "-c", script}}
}

func noInput() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

func run(t *testing.T, r *proc.Runner, cmd proc.Command) (res proc.Result, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	res, err := r.Run(t.Context(), cmd, proc.Stdio{Stdin: noInput(), Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatal(err)
	}
	return res, out.String(), errOut.String()
}

func TestRunReportsTheEnd(t *testing.T) {
	each(t, func(t *testing.T, r *proc.Runner, _ string) {
		tests := map[string]proc.Result{
			"exit 0":        {},
			"exit 3":        {Code: 3},
			"exit 255":      {Code: 255},
			"kill -TERM $$": {Code: 143, Signal: 15},
			"kill -KILL $$": {Code: 137, Signal: 9},
		}
		for script, want := range tests {
			cmd := shell(script)
			cmd.Timeout = time.Minute
			got, _, _ := run(t, r, cmd)
			if got.Duration <= 0 {
				t.Errorf("%s took %v", script, got.Duration)
			}
			got.Duration = 0
			if got != want {
				t.Errorf("%s: %+v, want %+v", script, got, want)
			}
		}
	})
}

// With a control group the limit reaches processes in sessions of their own.
func TestTimeoutEndsTheTree(t *testing.T) {
	r := proc.New(reaper.New(), cgroupRoot(t))
	defer r.Close()
	dir := t.TempDir()
	cmd := shell("for i in 1 2 3; do setsid sh -c 'echo $$ > " + dir + "/'$i'; sleep 300' & done; sleep 300")
	cmd.Timeout = 500 * time.Millisecond
	began := time.Now()
	res, _, _ := run(t, r, cmd)
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	if !res.TimedOut || res.Code != 137 {
		t.Errorf("result is %+v", res)
	}
	for _, name := range []string{"1", "2", "3"} {
		pid, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		waitDead(t, strings.TrimSpace(string(pid)))
	}
}

// waitDead waits until pid is gone or a zombie that somebody else must reap.
func waitDead(t *testing.T, pid string) {
	t.Helper()
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
	}
	t.Errorf("process %s outlived the limit", pid)
}

func TestCancelKills(t *testing.T) {
	each(t, func(t *testing.T, r *proc.Runner, _ string) {
		why := errors.New("nobody waits any more")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		_, err := r.Run(ctx, shell("sleep 300"), proc.Stdio{Stdin: noInput(), Stdout: io.Discard, Stderr: io.Discard})
		if !errors.Is(err, why) {
			t.Errorf("error is %v, want the cause", err)
		}
	})
}

func TestStartErrors(t *testing.T) {
	each(t, func(t *testing.T, r *proc.Runner, cgroups string) {
		tests := map[string]struct {
			cmd  proc.Command
			want error
		}{
			"not in PATH":    {proc.Command{Argv: []string{"no-such-program"}}, nil},
			"no such file":   {proc.Command{Argv: []string{"/no/such/program"}}, os.ErrNotExist},
			"no such dir":    {proc.Command{Argv: []string{"/bin/sh"}, Dir: "/no/such/dir"}, os.ErrNotExist},
			"NUL in code":    {proc.Script(proc.Interpreter{Path: "sh"}, []byte("echo \x00")), nil},
			"no interpreter": {proc.Script(proc.Interpreter{Path: "no-such-program"}, make([]byte, 1<<20)), nil},
		}
		for name, tt := range tests {
			_, err := r.Run(t.Context(), tt.cmd, proc.Stdio{Stdin: noInput(), Stdout: io.Discard, Stderr: io.Discard})
			start, ok := errors.AsType[*proc.StartError](err)
			if !ok || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s: error is %v", name, err)
				continue
			}
			if start.Name != tt.cmd.Argv[0] {
				t.Errorf("%s: the error names %q", name, start.Name)
			}
		}
		if cgroups != "" {
			if left, _ := filepath.Glob(filepath.Join(cgroups, "exec-*")); len(left) != 0 {
				t.Errorf("groups are left: %v", left)
			}
		}
	})
}

// A group goes when its background processes have gone, and not before.
func TestGroupOutlivesBackgroundProcess(t *testing.T) {
	root := cgroupRoot(t)
	r := proc.New(reaper.New(), root)
	defer r.Close()
	run(t, r, shell("sleep 0.5 >/dev/null 2>&1 & exit 0"))
	groups := func() int {
		found, _ := filepath.Glob(filepath.Join(root, "exec-*"))
		return len(found)
	}
	if n := groups(); n != 1 {
		t.Fatalf("%d groups while a background process lives, want 1", n)
	}
	for deadline := time.Now().Add(5 * time.Second); groups() > 0; time.Sleep(50 * time.Millisecond) {
		run(t, r, shell("exit 0"))
		if time.Now().After(deadline) {
			t.Fatal("the group was never removed")
		}
	}
}

// What the program wrote arrives whole though a background process holds the
// pipe and the reader is slower than the time Run lingers.
func TestOutputIsWholeThoughThePipeStaysOpen(t *testing.T) {
	each(t, func(t *testing.T, r *proc.Runner, _ string) {
		var out slow
		began := time.Now()
		cmd := shell("sleep 3 & head -c 60000 /dev/zero")
		res, err := r.Run(t.Context(), cmd, proc.Stdio{Stdin: noInput(), Stdout: &out, Stderr: io.Discard})
		if err != nil || res.Code != 0 || out.n != 60000 {
			t.Errorf("result %+v, %d bytes of 60000, error %v", res, out.n, err)
		}
		if took := time.Since(began); took > 2500*time.Millisecond {
			t.Errorf("it took %v: the background process held it up", took)
		}
	})
}

// slow takes longer over one write than Run lingers.
type slow struct{ n int }

func (w *slow) Write(p []byte) (int, error) {
	time.Sleep(300 * time.Millisecond)
	w.n += len(p)
	return len(p), nil
}

func TestScript(t *testing.T) {
	r := proc.New(reaper.New(), "")
	defer r.Close()
	for _, size := range []int{0, 128<<10 - 1, 128 << 10, 1 << 20} {
		code := "echo $((6*7))\n"
		code += strings.Repeat("#", max(0, size-len(code)))
		res, out, errOut := run(t, r, proc.Script(proc.Interpreter{Path: "/bin/sh"}, []byte(code)))
		if res.Code != 0 || out != "42\n" {
			t.Errorf("%d bytes of code: %+v, stdout %q, stderr %.200q", len(code), res, out, errOut)
		}
	}
}

func TestNoDescriptorsLeak(t *testing.T) {
	each(t, func(t *testing.T, r *proc.Runner, _ string) {
		const list = "ls /proc/self/fd"
		want, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", list).Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, got, _ := run(t, r, shell(list)); got != string(want) {
			t.Errorf("the program has descriptors %q, want %q", got, want)
		}
		before := descriptors(t)
		for range 20 {
			run(t, r, shell("exit 0"))
		}
		// Pipes that have ended are closed by the goroutine that reads them.
		for deadline := time.Now().Add(5 * time.Second); descriptors(t) > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d descriptors, %d before", descriptors(t), before)
			}
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
