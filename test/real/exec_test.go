package real

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/sandbox"
)

// echo is a program that writes what it reads.
const echo = "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"

func TestMegabytesThroughAProgram(t *testing.T) {
	h := newHost(t)
	id := sandbox.ID(h.create(t, "python"))
	for _, size := range []int{1 << 20, 5 << 20} {
		in := make([]byte, size)
		_, _ = rand.Read(in)
		res, err := h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: echo, Stdin: in})
		if err != nil || res.ExitCode != 0 || !bytes.Equal(res.Stdout, in) {
			t.Errorf("%d bytes: %d came back, exit %d, %v", size, len(res.Stdout), res.ExitCode, err)
		}
	}
	long := "x = '" + strings.Repeat("y", 900<<10) + "'; print(len(x))"
	res, err := h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: long})
	if err != nil || string(res.Stdout) != "921600\n" {
		t.Errorf("long code: %q %q, %v", res.Stdout, res.Stderr, err)
	}
}

func TestExec(t *testing.T) {
	h := newHost(t)
	python, shell := h.create(t, "python"), h.create(t, "shell")

	binary := make([]byte, 700<<10) // base64 of it still fits a request
	_, _ = rand.Read(binary)

	for _, tt := range []struct {
		name, id, code string
		stdin          []byte
		stdout, stderr string
		exit           int
	}{
		{name: "print", id: python, code: "print(6*7)", stdout: "42\n"},
		{name: "shell", id: shell, code: "echo $((6*7))", stdout: "42\n"},
		{name: "exit 0", id: shell, code: "exit 0"},
		{name: "exit 3", id: python, code: "import sys; sys.exit(3)", exit: 3},
		{name: "exit 255", id: shell, code: "exit 255", exit: 255},
		{name: "killed", id: shell, code: "kill -KILL $$", exit: 128 + 9},
		{name: "terminated", id: python, code: "import os; os.kill(os.getpid(), 15)", exit: 128 + 15},
		{name: "streams apart", id: python, code: "import sys; print('out'); print('err', file=sys.stderr)", stdout: "out\n", stderr: "err\n"},
		{name: "traceback", id: python, code: "1/0", exit: 1, stderr: "Traceback (most recent call last):\n" +
			"  File \"<string>\", line 1, in <module>\nZeroDivisionError: division by zero\n"},
		{name: "no stdin", id: python, code: echo},
		{name: "binary stdin", id: python, code: echo, stdin: binary, stdout: string(binary)},
		{name: "stdin nobody reads", id: shell, code: "exit 4", stdin: binary, exit: 4},
		{name: "not UTF-8", id: shell, code: `printf 'a\377b'`, stdout: "a\xffb"},
		{name: "who am I", id: shell, code: "id -u; pwd; echo $HOME; hostname | cut -c1-3", stdout: "0\n/root\n/root\nvm-\n"},
		{name: "no network", id: python, code: "import socket; print([n for _, n in socket.if_nameindex()])", stdout: "['lo']\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := h.Exec(t.Context(), tt.id, client.Program{Code: tt.code, Stdin: tt.stdin})
			if err != nil {
				t.Fatal(err)
			}
			if res.ExitCode != tt.exit || res.Err != "" {
				t.Errorf("exit %d (%s), want %d", res.ExitCode, res.Err, tt.exit)
			}
			if !bytes.Equal(res.Stdout, []byte(tt.stdout)) {
				t.Errorf("stdout %d bytes %.200q, want %d bytes %.200q", len(res.Stdout), res.Stdout, len(tt.stdout), tt.stdout)
			}
			if string(res.Stderr) != tt.stderr {
				t.Errorf("stderr %q, want %q", res.Stderr, tt.stderr)
			}
		})
	}
}

// findMarked prints the processes that carry a mark in their environment.
const findMarked = `for e in /proc/[0-9]*/environ; do tr '\0' '\n' <$e 2>/dev/null | grep -q ^MARK=%s$ && echo $e; done; true`

func TestTimeoutEndsTheWholeTree(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "shell")
	for name, code := range map[string]string{
		"sleeper":  "sleep 600",
		"setsid":   "setsid sleep 600 & setsid sh -c 'setsid sleep 600' & sleep 600",
		"orphans":  "(setsid sleep 600 &) ; (setsid sleep 600 &) ; sleep 600",
		"stubborn": "trap '' TERM INT HUP; while :; do sleep 600; done",
	} {
		t.Run(name, func(t *testing.T) {
			const limit = time.Second
			began := time.Now()
			res, err := h.Exec(t.Context(), id, client.Program{Code: "export MARK=" + name + "; " + code, Timeout: limit})
			if err != nil {
				t.Fatal(err)
			}
			if res.ExitCode != -1 || res.Err != client.TimedOut {
				t.Errorf("exit %d, %q, want -1, %q", res.ExitCode, res.Err, client.TimedOut)
			}
			if took := time.Since(began); took > limit+time.Second {
				t.Errorf("answered after %v, want at most a second after the limit", took)
			}
			left, err := h.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf(findMarked, name)})
			if err != nil || len(left.Stdout) > 0 {
				t.Errorf("still there: %q, %v", left.Stdout, err)
			}
		})
	}
}

// orphans double-forks 200 processes and waits until all of them have ended
// without their parents.
const orphans = `
import os, sys, time
for i in range(200):
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            time.sleep(0.01 * (i % 7))
            os._exit(7)
        os._exit(0)
    os.waitpid(pid, 0)
sys.exit(11)
`

// zombies counts processes that ended and were not collected, and orphans that
// still run.
const zombies = `
import glob, time
def states():
    for p in glob.glob('/proc/[0-9]*/stat'):
        try:
            yield open(p).read().rsplit(')', 1)[1].split()[0]
        except OSError:
            pass
for _ in range(50):
    z = sum(s == 'Z' for s in states())
    if z == 0: break
    time.sleep(0.1)
print(z)
`

func TestOrphansAreCollected(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "python")
	results := make(chan string)
	// Programs that end while orphans are collected must keep their status.
	go func() {
		defer close(results)
		for i := range 10 {
			res, err := h.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf("import sys; sys.exit(%d)", 20+i)})
			if err != nil || res.ExitCode != 20+i {
				results <- fmt.Sprintf("exit %d, %v, want %d", res.ExitCode, err, 20+i)
			}
		}
	}()
	res, err := h.Exec(t.Context(), id, client.Program{Code: orphans})
	if err != nil || res.ExitCode != 11 {
		t.Errorf("exit %d, %v, stderr %q, want 11", res.ExitCode, err, res.Stderr)
	}
	for r := range results {
		t.Error(r)
	}
	res, err = h.Exec(t.Context(), id, client.Program{Code: zombies})
	if err != nil || string(res.Stdout) != "0\n" {
		t.Errorf("zombies: %q, %v", res.Stdout, err)
	}
}
