package real

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// bombs are what one sandbox does to itself.
var bombs = map[string]string{
	"processes": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
	"memory":    "b = []\nwhile True: b.append(bytearray(1 << 20))",
	"CPU":       "while True: pass",
	"disk":      "f = open('/fill', 'wb')\nwhile True:\n try: f.write(bytes(1 << 20))\n except OSError: f.flush()",
	"files":     "import os\nn = 0\nwhile True:\n n += 1\n os.close(os.open(f'/tmp/{n}', os.O_CREAT))",
}

// A sandbox in which everything is used up is its own problem: the neighbour
// goes on, the daemon answers, and it can be deleted. With -long each bomb has
// its turn before all of them together have theirs.
func TestBombs(t *testing.T) {
	h := newHost(t, patient)
	neighbour, v := h.create(t, "shell"), &victim{h: h, id: h.create(t, "python")}
	checkReasons(t, h, v.id)
	free := freeDisk(t, h.cfg.DataDir)
	idle, _ := h.disturb(t, neighbour, "nothing", v, nil, span(4*time.Second, time.Minute))
	// The bar is for minutes on a host that does nothing else. Seconds are too few
	// for a p99, which is then the slowest answer of all.
	loose, looseHealth := max(10*idle.Percentile(99), 2*time.Second), time.Second
	slowest, slowestHealth := span(loose, 3*idle.Percentile(99)), span(looseHealth, 100*time.Millisecond)

	all := slices.Sorted(maps.Keys(bombs))
	if *long {
		for _, name := range all {
			execs, health := h.disturb(t, neighbour, name, v, []string{name}, 30*time.Second)
			oracle.Report(t, append(execs.Findings("the neighbour's exec under "+name, loose), health.Findings("/healthz", looseHealth)...))
		}
	}
	execs, health := h.disturb(t, neighbour, "all at once", v, all, span(20*time.Second, 5*time.Minute))
	t.Logf("p99 is %.1f times that under nothing", float64(execs.Percentile(99))/float64(idle.Percentile(99)))
	oracle.Report(t, append(execs.Findings("the neighbour's exec", slowest), health.Findings("/healthz", slowestHealth)...))
	if now := freeDisk(t, h.cfg.DataDir); now < free-64<<20 {
		t.Errorf("%d MiB are free on the disk, %d were", now>>20, free>>20)
	}

	stop := v.bomb(t.Context(), t, all)
	time.Sleep(2 * time.Second)
	id := v.current()
	vmm := h.vmm(t, id)
	began := time.Now()
	if err := h.Delete(t.Context(), id); err != nil && !isNotFound(err) {
		t.Error(err)
	}
	checkGone(t, "the victim", vmm, began, 10*time.Second)
	stop()
	for line := range strings.Lines(h.log.String()) {
		if strings.Contains(line, `msg="sandbox failed"`) && !noRoom.MatchString(line) {
			t.Errorf("a sandbox failed for another reason than that its agent had no room left to answer: %s", line)
		}
	}
}

// noRoom is how it is told that an agent had no room left to answer: to a sign of
// life, or to the opening of a stream, after which its connection is given up.
var noRoom = regexp.MustCompile(`reason="(its agent did not answer|the connection to its agent broke)"`)

// victim is the sandbox that bombs go off in. One whose agent has no room left to
// answer is taken down, as it has to be, and the next one takes its place.
type victim struct {
	h *host

	mu   sync.Mutex
	id   string
	lost int
}

func (v *victim) current() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.id
}

// replace makes another sandbox, unless somebody has.
func (v *victim) replace(ctx context.Context, t *testing.T, gone string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.id != gone {
		return
	}
	id, err := v.h.Create(ctx, "python")
	if err != nil && ctx.Err() == nil {
		t.Errorf("another victim: %v", err)
	}
	if err == nil {
		v.id = id
		v.lost++
	}
}

// bomb runs the named bombs, again when one has ended, until the function that it
// returns is called. None of them ends well, and in which way is the guest's
// affair.
func (v *victim) bomb(ctx context.Context, t *testing.T, names []string) (stop func()) {
	t.Helper()
	ctx, end := context.WithCancel(ctx)
	var bombing sync.WaitGroup
	for _, name := range names {
		bombing.Go(func() {
			for ctx.Err() == nil {
				id := v.current()
				_, err := v.h.Exec(ctx, id, client.Program{Code: bombs[name], Timeout: time.Minute})
				if isNotFound(err) {
					v.replace(ctx, t, id)
				}
			}
		})
	}
	return func() {
		end()
		bombing.Wait()
		v.h.killAll(t, v.current())
	}
}

// freeDisk is how many bytes of a data directory's disk can still be used.
func freeDisk(t *testing.T, data paths.Data) uint64 {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(string(data), &fs); err != nil {
		t.Fatal(err)
	}
	return fs.Bavail * uint64(fs.Bsize)
}

// checkGone waits until a VMM that was told to go has gone, and fails the test if
// that took longer than limit.
func checkGone(t *testing.T, who string, vmm int, began time.Time, limit time.Duration) {
	t.Helper()
	answered := time.Since(began)
	for {
		if err := syscall.Kill(vmm, 0); errors.Is(err, syscall.ESRCH) {
			t.Logf("%s: answered in %v, gone in %v", who, answered, time.Since(began))
			return
		}
		if time.Since(began) > limit {
			t.Errorf("%s: still there after %v", who, limit)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// limits are programs that run into one limit of a sandbox each, and what is to
// be said of that.
var limits = []struct{ what, code, want string }{
	{"memory", bombs["memory"], `exit 137 \[memory_mib\] $`},
	{"memory of a child", "import subprocess, sys\nsubprocess.call([sys.executable, '-c', \"\"\"" + bombs["memory"] + "\"\"\"])", `exit 0 \[memory_mib\] $`},
	{"disk", "f = open('/fill', 'wb', 0)\nwhile True: f.write(bytes(1 << 16))", `exit 1 \[disk_mib\] .*No space left on device`},
	{"none", "import os, sys\nos.remove('/fill')\nsys.exit(3)", `exit 3 \[\] $`},
	{"processes", `
import os, signal, sys
children = []
while True:
    try: child = os.fork()
    except OSError as e: break
    if child == 0: signal.pause()
    children.append(child)
for child in children: os.kill(child, signal.SIGKILL)`, `exit 0 \[pids\] $`},
}

// checkReasons has programs meet the limits of a sandbox, which are then named,
// while another one runs into none.
func checkReasons(t *testing.T, h *host, id string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var bystander sync.WaitGroup
	defer bystander.Wait()
	defer stop()
	bystander.Go(func() {
		for ctx.Err() == nil {
			res, err := h.Exec(ctx, id, client.Program{Code: "import time; time.sleep(2)"})
			if err == nil && res.Err == "" && len(res.LimitsHit) > 0 {
				t.Errorf("a program that does nothing ran into %q", res.LimitsHit)
			}
		}
	})
	for _, tt := range limits {
		began := time.Now()
		res, err := h.Exec(t.Context(), id, client.Program{Code: tt.code, Timeout: time.Minute})
		got := fmt.Sprintf("exit %d %v %s%s", res.ExitCode, res.LimitsHit, res.Stderr, res.Err)
		if err != nil || !regexp.MustCompile("(?s)"+tt.want).MatchString(got) {
			t.Errorf("%s: %.300s, %v; want %s", tt.what, got, err, tt.want)
		}
		t.Logf("%s: %.60q in %v", tt.what, got, time.Since(began))
	}
}

// disturb has the neighbour run programs and the daemon asked how it is, while
// the victim runs the named bombs.
func (h *host) disturb(t *testing.T, neighbour, what string, v *victim, names []string, length time.Duration) (execs, health oracle.Timing) {
	t.Helper()
	stop := v.bomb(t.Context(), t, names)
	asked := oracle.Watch(t.Context(), 200*time.Millisecond, func(ctx context.Context) error {
		res, err := h.Exec(ctx, neighbour, client.Program{Code: "echo ok"})
		if err == nil && string(res.Stdout) != "ok\n" {
			err = errors.New("wrong output " + string(res.Stdout) + res.Err)
		}
		return err
	})
	healthy := oracle.Watch(t.Context(), 100*time.Millisecond, h.Healthy)
	time.Sleep(length)
	execs, health = asked.Stop(), healthy.Stop()
	stop()
	t.Logf("%s: neighbour's exec: %v; /healthz: %v; %d victims did not answer any more", what, execs, health, v.lost)
	return execs, health
}
