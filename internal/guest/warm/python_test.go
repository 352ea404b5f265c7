package warm_test

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/warm"
	"github.com/emberd/emberd/internal/pack"
)

const python = "/usr/bin/python3"

// The python pack's zygote makes what python3 -c is, with this host's Python if
// it is the pack's. The differential test has many more programs.
func TestPythonZygote(t *testing.T) {
	version, err := exec.Command(python, "--version").Output()
	if err != nil || !strings.HasPrefix(string(version), "Python 3.11.") {
		t.Skipf("%s is %q, %v", python, version, err)
	}
	i := pythonInterpreter(t)
	i.wait(t)
	for _, code := range []string{
		"",
		"import sys; print(list(sys.modules), sys.path, sys.flags, sys.argv, sys.orig_argv, list(globals()))",
		"import os; print(dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd')))",
		"def f(): return f()\nprint(f())",
		"import traceback; traceback.print_stack(); 1/0",
		"x = = 1",
		"import gc; print(gc.collect())",
		"import atexit, sys; atexit.register(print, 'bye'); print(sys.stdin.read()); sys.exit('no')",
		"import threading, time; threading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start(); print('main')",
		"import os; os.kill(os.getpid(), 2)",
		// What is left to do at the end.
		"class A:\n  def __del__(self): print('gone')\na = A()",
		"class A:\n  __slots__ = ()\n  def __del__(self): print('gone')\nimport os; os._Environ.a = A()",
		"class A:\n  def __del__(self): print('gone')\na = A(); a.a = a; del a",
		"f = open('/dev/stdout', 'w'); f.write('late')",
		"def g():\n  try: yield\n  finally: print('left')\nx = g(); next(x)",
		"import sys; sys.stdout = open('/dev/full', 'w'); print(1)",
		"import sys; sys.stdout.close(); sys.exit(3)",
		"x = [1]; x.append(x); print('end', end=''); exit(4)",
		"import weakref\ndef f(): pass\nr = weakref.finalize(f, print, 'finalized')",
		"import sys; del sys.modules['os']; sys.modules = {}; print(1)",
		"print('\xff\xfe')",
	} {
		i.wait(t)
		p := i.Take(t.Context(), []byte(code))
		if p == nil {
			t.Fatalf("%q did not run in a ready process", code)
		}
		got := attend(t, i.runner, p)
		i.Prepare()
		p, err := i.runner.Start(proc.Script(proc.Interpreter{Path: python}, []byte(code)))
		if err != nil {
			t.Fatal(err)
		}
		// It is started by its path, which the zygote is not.
		want := attend(t, i.runner, p)
		want.stdout = strings.ReplaceAll(want.stdout, "['"+python+"', '-c'", "['python3', '-c'")
		if got != want {
			t.Errorf("%q: got\n%+v, want\n%+v", code, got, want)
		}
	}
}

func pythonInterpreter(t *testing.T) *interpreter {
	t.Helper()
	defs, err := pack.Definitions()
	if err != nil {
		t.Fatal(err)
	}
	def, err := pack.Find(defs, "python")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range def.Files {
		if filepath.Base(name) == "usercustomize.py" {
			if err := os.WriteFile(filepath.Join(dir, "usercustomize.py"), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	runner := proc.New(dead, "")
	i := &interpreter{runner: runner, Interpreter: warm.New(warm.Config{
		Recipe: warm.Recipe{Kind: warm.Forkserver, Argv: []string{"env", "PYTHONPATH=" + dir, "python3", "-c", ""}},
		Runner: runner, Reaper: dead, Log: slog.New(slog.DiscardHandler),
	})}
	t.Cleanup(func() { i.Close(); runner.Close() })
	return i
}

type ending struct {
	stdout, stderr string
	code, signal   int
}

func attend(t *testing.T, runner *proc.Runner, p *proc.Process) ending {
	t.Helper()
	var out, errs bytes.Buffer
	defer p.Abandon()
	res, err := runner.Attend(t.Context(), p, time.Minute, proc.Stdio{
		Stdin: io.NopCloser(strings.NewReader("input")), Stdout: &out, Stderr: &errs,
	})
	if err != nil {
		t.Fatal(err)
	}
	return ending{out.String(), errs.String(), res.Code, res.Signal}
}
