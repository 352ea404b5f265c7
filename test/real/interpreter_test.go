package real

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
)

// findStarted finds what was started ahead: the zygote and, if there is one, the
// process that waits for its code. Those that are on their way from the one to
// the other have another parent, or are in the session of the zygote.
const findStarted = `
import glob, os, signal, time
def started():
    found = []
    for path in glob.glob("/proc/[0-9]*"):
        try:
            if open(path + "/cmdline", "rb").read() == b"python3\0-c\0\0":
                pid = int(path[6:])
                stat = open(path + "/stat").read().rpartition(")")[2].split()
                if stat[1] == "1" and os.getsid(pid) == pid:
                    found.append((int(stat[19]), pid))
        except OSError:
            pass
    return [pid for _, pid in sorted(found)]
`

// meddle waits until a program beside it has ended, which has another one started
// ahead.
const meddle = findStarted + `
os.mkfifo("/tmp/beside")
with open("/tmp/beside") as f:
    beside = "/proc/" + f.read()
os.remove("/tmp/beside")
while os.path.exists(beside) or len(started()) != 2:
    time.sleep(0.01)
zygote, ready = started()
`

// meddleBeside is the program beside it, which does not end before that runs.
const meddleBeside = `
import os, time
while not os.path.exists("/tmp/beside"):
    time.sleep(0.01)
with open("/tmp/beside", "w") as f:
    f.write(str(os.getpid()))
`

// answerTimeout is the longest that a program may take, whatever was done to
// the interpreter it might have had: two seconds' wait for that, and the start of
// the plain one on a busy host.
const answerTimeout = 6 * time.Second

// broken is a sandbox whose interpreter is meddled with.
type broken struct {
	*host
	id string
}

func (b broken) run(t *testing.T, code string) client.Result {
	t.Helper()
	began := time.Now()
	res, err := b.Exec(t.Context(), b.id, client.Program{Code: code, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > answerTimeout {
		t.Errorf("it took %v: %q", took, code)
	}
	return res
}

// do runs code that has to work.
func (b broken) do(t *testing.T, code string) {
	t.Helper()
	if res := b.run(t, code); res.ExitCode != 0 || res.Err != "" {
		t.Fatalf("exit %d, %s%s", res.ExitCode, res.Stderr, res.Err)
	}
}

// answers runs code, which prints 42, three times and tells which of them ran in
// an interpreter that was started ahead.
func (b broken) answers(t *testing.T, code string) (warm []bool) {
	t.Helper()
	for range 3 {
		res := b.run(t, code)
		if res.ExitCode != 0 || res.Err != "" || string(res.Stdout) != "42\n" || len(res.Stderr) > 0 {
			t.Errorf("%q: exit %d, %q %q %s", code, res.ExitCode, res.Stdout, res.Stderr, res.Err)
		}
		warm = append(warm, res.Warm)
	}
	return warm
}

// recover waits until programs find an interpreter that was started ahead.
func (b broken) recover(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); slices.Contains(b.answers(t, "print(6*7)"), false); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("none is started ahead any more")
		}
	}
}

// Whatever root in a guest does to the interpreter that was started ahead, or to
// the plain one, a program gets the answer of what is python3 by then, or is told
// that there is none. The neighbour notices nothing.
func TestBrokenInterpreter(t *testing.T) {
	h := newHost(t)
	b, neighbour := broken{h, h.create(t, "python")}, broken{h, h.create(t, "python")}
	b.testModules(t)
	b.testFiles(t)
	b.testSignals(t)
	b.testRemoval(t)
	if warm := neighbour.answers(t, "print(6*7)"); slices.Contains(warm, false) {
		t.Errorf("the neighbour's were started ahead: %v", warm)
	}
}

func (b broken) testSignals(t *testing.T) {
	const either, isWarm, isCold = 0, 1, 2
	for _, tt := range []struct {
		name, code string
		next       int
	}{
		{"ready process killed", "os.kill(ready, signal.SIGKILL)", either},
		{"ready process stopped", "os.kill(ready, signal.SIGSTOP)", isCold},
		{"zygote killed", "os.kill(zygote, signal.SIGKILL)", isWarm},
		{"zygote stopped", "os.kill(zygote, signal.SIGSTOP)", isWarm},
		{"both killed", "os.kill(zygote, signal.SIGKILL); os.kill(ready, signal.SIGKILL)", either},
		{"both stopped", "os.kill(zygote, signal.SIGSTOP); os.kill(ready, signal.SIGSTOP)", isCold},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.recover(t)
			meddled := make(chan error, 1)
			go func() {
				res, err := b.Exec(t.Context(), b.id, client.Program{Code: meddle + tt.code, Timeout: 20 * time.Second})
				if err == nil && res.ExitCode != 0 {
					err = fmt.Errorf("exit %d, %s%s", res.ExitCode, res.Stderr, res.Err)
				}
				meddled <- err
			}()
			b.do(t, meddleBeside)
			if err := <-meddled; err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			warm := b.answers(t, "print(6*7)")
			if tt.next == isWarm && !warm[0] || tt.next == isCold && warm[0] {
				t.Errorf("started ahead: %v", warm)
			}
			t.Logf("three answers after %v, started ahead: %v", time.Since(began), warm)
		})
	}
}

func (b broken) testFiles(t *testing.T) {
	for _, tt := range []struct{ name, change, code, back string }{
		{
			// A shell takes -c as Python does.
			"python3 replaced", `
import os
os.rename("/usr/bin/python3", "/usr/bin/python3.old")
with open("/usr/bin/python3", "w") as f:
    f.write('#!/bin/sh\nexec /bin/sh "$@"\n')
os.chmod("/usr/bin/python3", 0o755)
`, "echo $((6*7))", "mv /usr/bin/python3.old /usr/bin/python3",
		},
		{
			"warm-up replaced", findStarted + `
warm_up = "/usr/lib/emberd/python/usercustomize.py"
os.remove("/usr/lib/emberd/python/__pycache__/usercustomize.cpython-311.pyc")
os.rename(warm_up, warm_up + ".old")
with open(warm_up, "w") as f:
    f.write("import time; time.sleep(600)")
for pid in started():
    os.kill(pid, signal.SIGKILL)
`, "print(6*7)", findStarted + `
os.rename("/usr/lib/emberd/python/usercustomize.py.old", "/usr/lib/emberd/python/usercustomize.py")
for pid in started():
    os.kill(pid, signal.SIGKILL)
`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.recover(t)
			b.do(t, tt.change)
			began := time.Now()
			if warm := b.answers(t, tt.code); slices.Contains(warm, true) {
				t.Errorf("started ahead: %v", warm)
			}
			t.Logf("three answers after %v", time.Since(began))
			b.do(t, tt.back)
		})
	}
}

// A module that one program installs is there for the next, wherever it is.
func (b broken) testModules(t *testing.T) {
	for _, tt := range []struct{ name, install, code string }{
		{"module installed", `
import os
place = "/usr/local/lib/python3.11/dist-packages"
os.makedirs(place)
with open(place + "/one.py", "w") as f:
    f.write("answer = 42")
`, "import one; print(one.answer)"},
		{"path installed", `
import os
place = "/root/.local/lib/python3.11/site-packages"
os.makedirs(place)
os.makedirs("/srv/modules")
with open("/srv/modules/two.py", "w") as f:
    f.write("answer = 42")
with open(place + "/two.pth", "w") as f:
    f.write("/srv/modules")
`, "import two; print(two.answer)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.recover(t)
			b.do(t, tt.install)
			t.Logf("started ahead: %v", b.answers(t, tt.code))
		})
	}
}

func (b broken) testRemoval(t *testing.T) {
	t.Run("python3 removed", func(t *testing.T) {
		b.recover(t)
		b.do(t, `import os; os.remove("/usr/bin/python3")`)
		for range 3 {
			res := b.run(t, "print(6*7)")
			if res.ExitCode != -1 || !strings.Contains(res.Err, "python3") || len(res.Stdout) > 0 || res.Warm {
				t.Errorf("exit %d, %q %q, error %q", res.ExitCode, res.Stdout, res.Stderr, res.Err)
			}
		}
	})
}
