package real

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// Two clients create sandboxes, run programs in them, have them keep a file, and
// delete them, again and again. After each fifty the host and the daemon are as
// they were; with -long it is a thousand.
func TestSoak(t *testing.T) {
	const batch = 50
	batches := span(1, 20)
	h := newHost(t, patient, func(c *daemon.Config) { c.Templates, c.Shells = true, 0 })
	if _, err := h.buildTemplate(t, "shell"); err != nil {
		t.Fatal(err)
	}
	life := func(n int) {
		id, err := h.Create(t.Context(), "shell") // a restore, as long as the host is not too busy
		if err != nil {
			t.Errorf("create: %v", err)
			return
		}
		defer func() {
			if err := h.Delete(t.Context(), id); err != nil {
				t.Errorf("delete: %v", err)
			}
		}()
		for _, p := range []struct{ code, want string }{
			{fmt.Sprintf("echo %d >/root/file; echo $((%d*7))", n, n), fmt.Sprintln(7 * n)},
			{"cat /root/file", fmt.Sprintln(n)},
		} {
			if res, err := h.Exec(t.Context(), id, client.Program{Code: p.code}); err != nil || string(res.Stdout) != p.want || res.ExitCode != 0 {
				t.Errorf("%s: %q %q, %d, %v", p.code, res.Stdout, res.Stderr, res.ExitCode, err)
			}
		}
	}
	work := func(n int64) {
		var lives atomic.Int64
		var workers sync.WaitGroup
		for range 2 {
			workers.Go(func() {
				for i := lives.Add(1); i <= n && !t.Failed(); i = lives.Add(1) {
					life(int(i))
				}
			})
		}
		workers.Wait()
	}
	work(10) // what grows once grows
	whole := lookAt
	whole.Process = os.Getpid()
	h.awaitQuiet(t)
	before, heap := take(t, whole), heapInUse()
	began := time.Now()
	for i := range batches {
		work(batch)
		h.awaitQuiet(t)
		checkState(t, before)
		rss, err := oracle.RSS(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d lives in %v: heap %d KiB, %d KiB before; RSS %d KiB, %d goroutines", batch*(i+1),
			time.Since(began).Round(time.Second), heapInUse()>>10, heap>>10, rss>>10, runtime.NumGoroutine())
		if t.Failed() {
			return
		}
	}
	// Half a MiB is what a heap differs by from one time to the next.
	allowed := int64(512<<10) + int64(batch*batches)<<20/1000
	if grown := heapInUse() - heap; grown > allowed {
		t.Errorf("the daemon's heap grew by %d KiB over %d lives, %d are allowed", grown>>10, batch*batches, allowed>>10)
	}
}

// awaitQuiet waits until there is nothing of any sandbox.
func (h *host) awaitQuiet(t *testing.T) {
	t.Helper()
	jails := filepath.Join(h.cfg.DataDir.Jails(), "firecracker")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := len(h.engine.Loads())
		for _, dir := range []string{jails, h.cfg.RunDir.Sandboxes(), h.cfg.RunDir.VMs()} {
			entries, err := os.ReadDir(dir)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			left += len(entries)
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d things of sandboxes are left", left)
		}
	}
}

// heapInUse is what this process holds, in bytes.
func heapInUse() int64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Eight sandboxes that nobody uses cost the daemon next to nothing, whoever deletes
// them all twice at once gets sixteen answers, and ten seconds later they are gone.
func TestEightSandboxes(t *testing.T) {
	const n = 8
	data, run := small(t)
	flags := []string{"--pool", "python=0", "--shells", "0", "--default-memory", "128", "--boot-timeout", "3m"}
	d := startEmberd(t, data, run, append(flags, "--on-exit", "keep")...)
	if _, err := d.BuildTemplate(t.Context(), rest.TemplateRequest{LanguagePack: "shell"}); err != nil {
		t.Fatal(err)
	}
	alone := d.holdings(t)
	var ids []string
	var pids []int
	for range n {
		id, err := d.Create(t.Context(), "shell", client.WithBootPath("restore"))
		if err != nil {
			t.Fatal(err)
		}
		ids, pids = append(ids, id), append(pids, d.pid(t, id))
	}
	d.checkCost(t, "made", alone, n)
	d.end(t, syscall.SIGKILL)
	d = startEmberd(t, data, run, flags...)
	t.Logf("ready after %v; %s", d.ready, d.recovery())
	d.checkCost(t, "adopted", alone, n)

	began := time.Now()
	var deletes sync.WaitGroup
	var succeeded, failed atomic.Int64
	for _, id := range append(ids, ids...) {
		deletes.Go(func() {
			switch err := d.Delete(t.Context(), id); {
			case err == nil:
				succeeded.Add(1)
			case isNotFound(err):
				failed.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	deletes.Wait()
	answered := time.Since(began)
	if succeeded.Load() != n || failed.Load() != n {
		t.Errorf("%d deletes succeeded, and for %d there was none; want %d of each", succeeded.Load(), failed.Load(), n)
	}
	for _, pid := range pids {
		for !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) && time.Since(began) < 10*time.Second {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("they are not gone after %v", took)
	}
	t.Logf("answered after %v, gone after %v", answered, time.Since(began))
}

// holdings is what a daemon takes.
type holdings struct {
	rss, anon         int64
	files, goroutines int
}

var goroutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)

func (d *emberd) holdings(t *testing.T) holdings {
	t.Helper()
	metrics, err := d.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := goroutines.FindSubmatch(metrics)
	if m == nil {
		t.Fatalf("no goroutines among the metrics:\n%s", metrics)
	}
	rss, err := oracle.RSS(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	anon, err := oracle.Anon(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	files, err := oracle.Files(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	held := holdings{rss: rss, anon: anon, goroutines: int(number(t, string(m[1])))}
	for class, n := range files {
		if !strings.HasPrefix(class, "anon_inode:[eventpoll") {
			held.files += n
		}
	}
	return held
}

// checkCost checks what n sandboxes that nobody uses cost the daemon, given what
// it takes without.
func (d *emberd) checkCost(t *testing.T, how string, alone holdings, n int) {
	t.Helper()
	now := d.holdings(t)
	const idle = 10 * time.Second
	spent := ticks(t, d.cmd.Process.Pid)
	time.Sleep(idle)
	busy := float64(ticks(t, d.cmd.Process.Pid)-spent) / 100 / idle.Seconds()
	each := float64(n)
	memory, files, routines := float64(now.anon-alone.anon)/(1<<20)/each, float64(now.files-alone.files)/each, float64(now.goroutines-alone.goroutines)/each
	t.Logf("%d sandboxes that were %s: %.1f MiB in all, %.2f each; %.1f files and %.1f goroutines each; %.1f %% of a CPU",
		n, how, float64(now.rss)/(1<<20), memory, files, routines, 100*busy)
	if now.rss > 64<<20 || memory > 1.5 || files > 6 || routines > 8 {
		t.Errorf("that is too much")
	}
}
