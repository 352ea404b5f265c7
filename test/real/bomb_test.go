package real

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
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
	neighbour, victim := h.create(t, "shell"), h.create(t, "python")
	vmm := h.vmm(t, victim)
	grown := peak(t, vmm)
	checkReasons(t, h, victim)
	disk := takeDisk(t, h.cfg.DataDir)
	idle, _ := h.disturb(t, neighbour, victim, "nothing", nil, span(4*time.Second, time.Minute))
	// The bar is for minutes on a host that does nothing else. Seconds are too few
	// for a p99, which is then the slowest answer of all.
	loose, looseHealth := max(10*idle.Percentile(99), 2*time.Second), time.Second
	slowest, slowestHealth := span(loose, 3*idle.Percentile(99)), span(looseHealth, 100*time.Millisecond)

	all := slices.Sorted(maps.Keys(bombs))
	if *long {
		for _, name := range all {
			execs, health := h.disturb(t, neighbour, victim, name, []string{name}, 30*time.Second)
			oracle.Report(t, append(execs.Findings("the neighbour's exec under "+name, loose), health.Findings("/healthz", looseHealth)...))
		}
	}
	execs, health := h.disturb(t, neighbour, victim, "all at once", all, span(20*time.Second, 5*time.Minute))
	oracle.Report(t, append(execs.Findings("the neighbour's exec", slowest), health.Findings("/healthz", slowestHealth)...))
	g := grown() >> 20
	t.Logf("the VMM grew by %d MiB", g)
	if most := int64(h.cfg.Limits.Default.PromisedMiB()); g > most {
		t.Errorf("the VMM grew by %d MiB, %d are allowed", g, most)
	}
	if now := takeDisk(t, h.cfg.DataDir); now != disk {
		t.Errorf("the data directory holds %d bytes, it held %d", now, disk)
	}

	stop := h.bomb(t, victim, all)
	time.Sleep(span(2*time.Second, 10*time.Second))
	began := time.Now()
	if err := h.Delete(t.Context(), victim); err != nil && !isNotFound(err) {
		t.Error(err)
	}
	checkGone(t, "the victim", vmm, began, 10*time.Second)
	stop()
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

// checkReasons has a program meet the limits of memory and disk, and be told so.
// What is said of processes is in [TestPIDs].
func checkReasons(t *testing.T, h *host, id string) {
	t.Helper()
	for _, tt := range []struct{ what, code, want string }{
		{"memory", "b = []\nwhile True: b.append(bytearray(1 << 20))", "exit 137 "},
		{"disk", "f = open('/fill', 'wb', 0)\nwhile True: f.write(bytes(1 << 16))", "exit 1 .*No space left on device"},
	} {
		res, err := h.Exec(t.Context(), id, client.Program{Code: tt.code, Timeout: time.Minute})
		got := fmt.Sprintf("exit %d %s%s", res.ExitCode, res.Stderr, res.Err)
		if err != nil || !regexp.MustCompile("(?s)"+tt.want).MatchString(got) {
			t.Errorf("%s: %.300s, %v; want %s", tt.what, got, err, tt.want)
		}
		h.run(t, id, "import os\nif os.path.exists('/fill'): os.remove('/fill')")
	}
}

// disturb has the neighbour run programs and the daemon asked how it is, while
// the victim runs the named bombs.
func (h *host) disturb(t *testing.T, neighbour, victim, what string, names []string, length time.Duration) (execs, health oracle.Timing) {
	t.Helper()
	stop := h.bomb(t, victim, names)
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
	t.Logf("%s: neighbour's exec: %v; /healthz: %v", what, execs, health)
	return execs, health
}

// bomb runs the named bombs in a sandbox, again when one has ended, until the
// function that it returns is called. None of them ends well, and in which way
// is the guest's affair.
func (h *host) bomb(t *testing.T, id string, names []string) (stop func()) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	var bombing sync.WaitGroup
	for _, name := range names {
		bombing.Go(func() {
			for ctx.Err() == nil {
				_, err := h.Exec(ctx, id, client.Program{Code: bombs[name], Timeout: time.Minute})
				if isNotFound(err) {
					return
				}
			}
		})
	}
	return func() {
		end()
		bombing.Wait()
	}
}
