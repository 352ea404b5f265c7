package warm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/guest/boot"
	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/warm"
	"github.com/emberd/emberd/internal/pack"
)

// The guest reads what the host writes.
func TestParseRecipe(t *testing.T) {
	host := pack.Pack{Interpreter: "python3", CodeFlag: "-c", Warm: &pack.WarmUp{
		Kind: pack.ForkServer, Argv: []string{"env", "A=b:c", "python3", "-c", ""}, Watch: []string{"/usr/lib", "/root"},
	}}
	line := boot.ParseCmdline("quiet " + host.BootArgs())
	if line.Interpreter != host.Interpreter || line.CodeFlag != host.CodeFlag {
		t.Errorf("%+v", line)
	}
	got, err := warm.ParseRecipe(line.Warm, line.Watch)
	want := []string{"env", "A=b:c", "python3", "-c", ""}
	if err != nil || got.Kind != warm.Forkserver || fmt.Sprint(got.Argv) != fmt.Sprint(want) || !slices.Equal(got.Watch, host.Warm.Watch) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "forkserver", "forkserver,", "prestart,,x", "zygote,python3"} {
		if got, err := warm.ParseRecipe(bad, ""); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}

// interpreter is an Interpreter with a runner, which end with the test.
type interpreter struct {
	*warm.Interpreter
	runner *proc.Runner
}

func newInterpreter(t *testing.T, kind warm.Kind, how string) *interpreter {
	t.Helper()
	return newInterpreterFor(t, kind, how, "/bin/sh", nil)
}

// newInterpreterFor has what is started ahead stand for the plain interpreter at
// a path, and watches others.
func newInterpreterFor(t *testing.T, kind warm.Kind, how, plain string, watch []string) *interpreter {
	t.Helper()
	role := asZygote
	if kind == warm.Prestart {
		role = asPrestart
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	runner := proc.New(dead, "")
	i := &interpreter{runner: runner, Interpreter: warm.New(warm.Config{
		Recipe: warm.Recipe{Kind: kind, Argv: []string{exe, role, how}, Watch: watch}, Interpreter: plain,
		Runner: runner, Reaper: dead, Log: slog.New(slog.DiscardHandler),
	})}
	t.Cleanup(func() { i.Close(); runner.Close() })
	return i
}

// run runs code ahead if it can be, and tells whether it was.
func (i *interpreter) run(t *testing.T, code string, timeout time.Duration) (res proc.Result, stdout string, ahead bool) {
	t.Helper()
	p := i.Take(t.Context(), []byte(code))
	if p == nil {
		return res, "", false
	}
	var out bytes.Buffer
	defer p.Abandon()
	res, err := i.runner.Attend(t.Context(), p, timeout, proc.Stdio{
		Stdin: io.NopCloser(strings.NewReader("input")), Stdout: &out, Stderr: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	i.Prepare()
	return res, out.String(), true
}

func (i *interpreter) wait(t *testing.T) {
	t.Helper()
	if err := i.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func each(t *testing.T, test func(t *testing.T, kind warm.Kind)) {
	for _, kind := range []warm.Kind{warm.Forkserver, warm.Prestart} {
		t.Run(string(kind), func(t *testing.T) { test(t, kind) })
	}
}

// A program that was started ahead ends as any other, each in a process of its
// own.
func TestProgramsRunAhead(t *testing.T) {
	each(t, func(t *testing.T, kind warm.Kind) {
		i := newInterpreter(t, kind, "")
		var descriptors bytes.Buffer
		const list = "ls /proc/self/fd; pwd; echo $PPID"
		_, err := i.runner.Run(t.Context(), proc.Command{Argv: []string{"/bin/sh", "-c", list}}, proc.Stdio{
			Stdin: io.NopCloser(strings.NewReader("")), Stdout: &descriptors, Stderr: io.Discard,
		})
		if err != nil {
			t.Fatal(err)
		}
		tests := map[string]struct {
			want   proc.Result
			stdout string
		}{
			"cat; exit 3":   {proc.Result{Code: 3}, "input"},
			"kill -TERM $$": {proc.Result{Code: 143, Signal: 15}, ""},
			"kill -KILL $$": {proc.Result{Code: 137, Signal: 9}, ""},
			"":              {proc.Result{}, ""},
			list:            {proc.Result{}, descriptors.String()},
			"echo 42 #" + strings.Repeat("x", 100<<10): {proc.Result{}, "42\n"},
		}
		for code, tt := range tests {
			i.wait(t)
			got, stdout, ahead := i.run(t, code, time.Minute)
			if !ahead {
				t.Fatalf("%.30q was not run ahead", code)
			}
			if got.Duration <= 0 {
				t.Errorf("%.30q took %v", code, got.Duration)
			}
			got.Duration = 0
			if got != tt.want || stdout != tt.stdout {
				t.Errorf("%.30q: %+v, %q; want %+v, %q", code, got, stdout, tt.want, tt.stdout)
			}
		}
	})
}

func TestCodeThatIsNotForMe(t *testing.T) {
	i := newInterpreter(t, warm.Prestart, "")
	i.wait(t)
	for _, code := range []string{strings.Repeat("#", 128<<10), strings.Repeat("#", 1<<20), "a\x00b"} {
		if p := i.Take(t.Context(), []byte(code)); p != nil {
			t.Errorf("code of %d bytes was taken", len(code))
		}
	}
	if _, out, ahead := i.run(t, "echo 42", 0); !ahead || out != "42\n" {
		t.Error("the ready process was wasted")
	}
}

// All get the plain interpreter that would wait too long, and nobody gets a
// process twice.
// A program waits for a process that takes long to start, as the plain interpreter
// would take longer.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	i := newInterpreter(t, warm.Prestart, "slow")
	i.wait(t)
	for range 2 {
		if _, out, ahead := i.run(t, "echo 42", 0); !ahead || out != "42\n" {
			t.Errorf("%v, output is %q", ahead, out)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	each(t, func(t *testing.T, kind warm.Kind) {
		i := newInterpreter(t, kind, "")
		i.wait(t)
		var (
			group sync.WaitGroup
			mu    sync.Mutex
			pids  = map[string]bool{}
		)
		for range 16 {
			group.Go(func() {
				_, out, ahead := i.run(t, "echo $$", 0)
				mu.Lock()
				defer mu.Unlock()
				if ahead && pids[out] {
					t.Errorf("process %s ran two programs", out)
				}
				pids[out] = pids[out] || ahead
			})
		}
		group.Wait()
		delete(pids, "")
		if len(pids) == 0 {
			t.Error("none of 16 ran ahead")
		}
		t.Logf("%d of 16 ran ahead", len(pids))
	})
}

func TestTimeoutEndsTheProgram(t *testing.T) {
	each(t, func(t *testing.T, kind warm.Kind) {
		i := newInterpreter(t, kind, "")
		i.wait(t)
		res, _, ahead := i.run(t, "sleep 300", 100*time.Millisecond)
		if !ahead || !res.TimedOut || res.Code != 137 {
			t.Errorf("%v, %+v", ahead, res)
		}
	})
}

// What does not keep to the rules is never used, and what waits for it is told
// why.
func TestWhatCannotBecomeReady(t *testing.T) {
	for _, tt := range []struct {
		kind warm.Kind
		how  string
		want string
	}{
		{warm.Forkserver, "quits", "wait for it to be ready"},
		{warm.Forkserver, "wrong pid", "process"},
		{warm.Forkserver, "no orphan", "has another parent"},
		{warm.Forkserver, "noise", "begins with"},
		{warm.Prestart, "noise", "begins with"},
		{warm.Prestart, "wrong pid", "says that it is"},
	} {
		t.Run(string(tt.kind)+" "+tt.how, func(t *testing.T) {
			i := newInterpreter(t, tt.kind, tt.how)
			if err := i.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
			if p := i.Take(t.Context(), []byte("echo 42")); p != nil {
				t.Error("it was given code")
			}
		})
	}
	t.Run("no such program", func(t *testing.T) {
		runner := proc.New(dead, "")
		defer runner.Close()
		i := warm.New(warm.Config{
			Recipe: warm.Recipe{Kind: warm.Forkserver, Argv: []string{"no-such-program"}},
			Runner: runner, Reaper: dead, Log: slog.New(slog.DiscardHandler),
		})
		defer i.Close()
		if err := i.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "no-such-program") {
			t.Errorf("error is %v", err)
		}
	})
	for _, kind := range []warm.Kind{warm.Forkserver, warm.Prestart} {
		t.Run(string(kind)+" is silent", func(t *testing.T) {
			how := "never ready"
			if kind == warm.Forkserver {
				how = "mute"
			}
			i := newInterpreter(t, kind, how)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := i.Wait(ctx); err == nil {
				t.Error("it is ready")
			}
		})
	}
}

// A ready process that fails before it says that it runs the code has not, and
// is gone when the plain interpreter starts.
func TestWhatDoesNotTakeItsCode(t *testing.T) {
	each(t, func(t *testing.T, kind warm.Kind) {
		for _, how := range []string{"dies with the code", "never takes it", "wrong answer"} {
			i := newInterpreter(t, kind, how)
			i.wait(t)
			mark := filepath.Join(t.TempDir(), "ran")
			if p := i.Take(t.Context(), []byte("sleep 1; touch "+mark)); p != nil {
				t.Errorf("%s: it runs", how)
			}
			if how != "wrong answer" {
				continue
			}
			time.Sleep(1500 * time.Millisecond)
			if _, err := os.Stat(mark); err == nil {
				t.Errorf("%s: it was still running", how)
			}
		}
	})
}

// allChildren are this process's children: zygotes, ready processes and programs.
func allChildren(t *testing.T) []int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("%v, %v", tasks, err)
	}
	var pids []int
	for _, task := range tasks {
		b, _ := os.ReadFile(task) // a thread that has ended has no children
		for field := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// noChildren waits until what was killed is gone.
func noChildren(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); len(allChildren(t)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("children %v are left", allChildren(t))
		}
	}
}

// Whoever kills what waits gets the plain interpreter at worst, and it is
// replaced.
func TestKilledWhileItWaits(t *testing.T) {
	each(t, func(t *testing.T, kind warm.Kind) {
		i := newInterpreter(t, kind, "")
		i.wait(t)
		for _, pid := range allChildren(t) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if _, out, ahead := i.run(t, "echo 42", 0); ahead && out != "42\n" {
			t.Errorf("output is %q", out)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, out, ahead := i.run(t, "echo 42", 0); ahead {
				if out != "42\n" {
					t.Errorf("output is %q", out)
				}
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("it was not replaced")
			}
			i.Prepare()
		}
	})
}

// What was started ahead of an interpreter that was replaced or removed since, or
// would read other files as it starts, runs no code; what is started from then on
// does.
func TestAnotherInterpreter(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"replaced": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", nil, 0o755), os.Rename(path+".new", path))
		},
		"edited":         func(path string) error { return os.WriteFile(path, []byte("x"), 0o755) },
		"not executable": func(path string) error { return os.Chmod(path, 0o600) },
		"removed":        os.Remove,
		"module added": func(path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), "lib", "m"), nil, 0o600)
		},
		"path added": func(path string) error { return os.Mkdir(filepath.Join(filepath.Dir(path), "local"), 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, kind warm.Kind) {
				dir := t.TempDir()
				plain, lib := filepath.Join(dir, "interpreter"), filepath.Join(dir, "lib")
				if err := errors.Join(os.WriteFile(plain, nil, 0o755), os.Mkdir(lib, 0o755)); err != nil {
					t.Fatal(err)
				}
				i := newInterpreterFor(t, kind, "", plain, []string{lib, filepath.Join(dir, "local")})
				i.wait(t)
				if _, out, ahead := i.run(t, "echo 42", 0); !ahead || out != "42\n" {
					t.Fatalf("%v, output is %q", ahead, out)
				}
				i.wait(t)
				before := allChildren(t)
				if err := change(plain); err != nil {
					t.Fatal(err)
				}
				if _, _, ahead := i.run(t, "echo 42", 0); ahead {
					t.Error("the one before ran the code")
				}
				i.wait(t)
				if _, out, ahead := i.run(t, "echo 42", 0); !ahead || out != "42\n" {
					t.Errorf("%v, output is %q", ahead, out)
				}
				for _, pid := range allChildren(t) {
					if slices.Contains(before, pid) {
						t.Errorf("process %d goes on, which was started before", pid)
					}
				}
			})
		})
	}
}

// Once it has expired, nobody gets a process that was ready before, and it ends when
// the next one is made.
func TestExpire(t *testing.T) {
	each(t, func(t *testing.T, kind warm.Kind) {
		noChildren(t)
		i := newInterpreter(t, kind, "")
		i.Expire()
		if left := allChildren(t); len(left) != 0 {
			t.Errorf("nothing was asked for, and there is %v", left)
		}
		i.wait(t)
		before := map[int]bool{}
		for _, pid := range allChildren(t) {
			before[pid] = true
		}
		i.Expire()
		_, out, ahead := i.run(t, "echo $$", 0)
		if pid, _ := strconv.Atoi(strings.TrimSpace(out)); ahead && before[pid] {
			t.Errorf("process %d was used, which was ready before", pid)
		}
		i.wait(t)
		waiting := allChildren(t)
		i.Expire()
		i.Prepare()
		i.wait(t)
		for _, pid := range allChildren(t) {
			if slices.Contains(waiting, pid) && (kind == warm.Prestart || pid != slices.Min(waiting)) {
				t.Errorf("process %d goes on, which was ready before", pid) // the zygote, which is older, is to
			}
		}
	})
}

func TestCloseLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, kind warm.Kind) {
		i := newInterpreter(t, kind, "")
		i.wait(t)
		i.Close()
		i.runner.Close()
		noChildren(t)
		if p := i.Take(t.Context(), []byte("echo 42")); p != nil {
			t.Error("a closed interpreter runs code")
		}
	})
}
