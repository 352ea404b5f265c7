package real

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/sandbox"
)

// patient gives microVMs all the time they need to boot, as more than one of
// them, or one with more than one CPU, takes long where all that is emulated.
func patient(c *daemon.Config) { c.BootTimeout = 3 * time.Minute }

// createLimited makes a sandbox of the shell pack with those limits.
func (h *host) createLimited(t *testing.T, limits sandbox.Limits) sandbox.ID {
	t.Helper()
	sb, err := h.engine.Create(t.Context(), sandbox.Spec{Pack: "shell", Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	return sb.ID
}

// sh runs a shell script in a sandbox and returns what it wrote.
func (h *host) sh(t *testing.T, id sandbox.ID, script string) string {
	t.Helper()
	res, err := h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: script, Timeout: time.Minute})
	if err != nil || res.Err != "" {
		t.Fatalf("%s: %s, %v", script, res.Err, err)
	}
	return strings.TrimSpace(string(res.Stdout) + string(res.Stderr))
}

// A sandbox gets what was asked for, and what it writes is held to the limit
// wherever it writes it.
func TestSizeAndDisk(t *testing.T) {
	h := newHost(t, patient)
	id := h.createLimited(t, sandbox.Limits{Size: sandbox.Size{VCPUs: 2, MemoryMiB: 192}, DiskMiB: 24})
	if got := h.sh(t, id, "grep -c ^processor /proc/cpuinfo"); got != "2" {
		t.Errorf("%s virtual CPUs, want 2", got)
	}
	var kib int
	if _, err := fmt.Sscanf(h.sh(t, id, "grep MemTotal /proc/meminfo"), "MemTotal: %d kB", &kib); err != nil || kib > 192<<10 || kib < 128<<10 {
		t.Errorf("%d KiB of memory, %v, want somewhat less than 192 MiB", kib, err)
	}
	for _, dir := range []string{"/root", "/tmp", "/run"} {
		got := h.sh(t, id, "dd if=/dev/zero of="+dir+"/full bs=1M count=64; ls -l "+dir+"/full | awk '{print $5}'; rm "+dir+"/full")
		if !strings.Contains(got, "No space left on device") {
			t.Errorf("%s takes more than 24 MiB: %s", dir, got)
		}
	}
	got := h.sh(t, id, "dd if=/dev/zero of=/tmp/a bs=1M count=20 2>/dev/null; dd if=/dev/zero of=/root/b bs=1M count=20; df -m / /tmp | awk '{print $2}'")
	if !strings.Contains(got, "No space left on device") || strings.Count(got, "\n24") != 2 {
		t.Errorf("the limit is not that of all files together: %s", got)
	}
}

// A fork bomb has as many processes as it may, the agent answers meanwhile, and
// a limit ends it.
func TestPIDs(t *testing.T) {
	h := newHost(t, patient)
	id := h.createLimited(t, sandbox.Limits{PIDs: 64})
	const spawn = "i=0; while [ $i -lt 100 ]; do sleep 600 & i=$((i+1)); done; echo unlimited"
	res, err := h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: spawn, Timeout: 30 * time.Second})
	if err != nil || res.ExitCode == 0 || !strings.Contains(string(res.Stderr), "fork") || res.Hit != (sandbox.LimitsHit{PIDs: true}) {
		t.Fatalf("exit %d, %q, %q, %v, %v", res.ExitCode, res.Stdout, res.Stderr, res.Hit, err)
	}
	// What it left behind and one more program take up the whole limit, and the
	// next one hears so, unless it was quicker than that one.
	for deadline := time.Now().Add(time.Minute); !strings.Contains(res.Err, "the limit pids"); {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = h.engine.Exec(ctx, id, sandbox.ExecRequest{Code: "exec sleep 600"}) })
		h.awaitExec(t, id)
		time.Sleep(time.Second)
		res, err = h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: "true"})
		cancel()
		wg.Wait()
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("exit %d, %q, %q, %v", res.ExitCode, res.Err, res.Stderr, err)
		}
	}

	if res.Hit != (sandbox.LimitsHit{PIDs: true}) {
		t.Errorf("a program that was one too many ran into %v", res.Hit)
	}

	id = h.createLimited(t, sandbox.Limits{PIDs: 64})
	began := time.Now()
	res, err = h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: "bomb() { bomb | bomb & }; bomb; sleep 60", Timeout: 3 * time.Second})
	if err != nil || res.Err != sandbox.ErrTextTimedOut || !res.Hit.PIDs {
		t.Errorf("bomb: %q, %v, %v", res.Err, res.Hit, err)
	}
	t.Logf("a bomb with a limit of 3s was over after %v", time.Since(began).Round(time.Millisecond))
	if got := h.sh(t, id, "echo alive"); got != "alive" {
		t.Errorf("after the bomb: %q", got)
	}
}

// awaitGone waits until a sandbox is not found any more.
func (h *host) awaitGone(t *testing.T, id sandbox.ID, limit time.Duration) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		if _, err := h.Get(t.Context(), string(id)); isNotFound(err) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", id)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestDeadlines(t *testing.T) {
	h := newHost(t, patient)
	before := takeState(t)
	began := time.Now()
	id := h.createLimited(t, sandbox.Limits{IdleTimeout: 2 * time.Second})
	boot := time.Since(began)
	h.sh(t, id, "sleep 3") // a program keeps it alive
	h.awaitGone(t, id, 10*time.Second)
	h.awaitLog(t, "it was idle for too long")

	id = h.createLimited(t, sandbox.Limits{Lifetime: 2*boot + 5*time.Second})
	_, err := h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: "sleep 600"})
	if code, msg := sandbox.Public(err); code != sandbox.CodeLost || !strings.Contains(msg, "its lifetime was over") {
		t.Errorf("exec in the expired sandbox: %v", err)
	}
	if _, err := h.engine.Exec(t.Context(), id, sandbox.ExecRequest{Code: "true"}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("later: %v, want not found", err)
	}
	h.awaitLog(t, "its lifetime was over")
	checkState(t, before)
}

// awaitLog waits until the daemon's log has a text.
func (h *host) awaitLog(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(h.log.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q", text)
		}
	}
}

// Twelve creates at a time, where three fit: three sandboxes, nine refusals, and
// no VMM more.
func TestQuotaOfRealVMs(t *testing.T) {
	h := newHost(t, patient, func(c *daemon.Config) { c.Capacity.Sandboxes = 3 })
	var (
		wg            sync.WaitGroup
		mu            sync.Mutex
		made, refused int
	)
	for range 12 {
		wg.Go(func() {
			_, err := h.engine.Create(t.Context(), sandbox.Spec{Pack: "shell"})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case errors.Is(err, sandbox.ErrQuota):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 3 || refused != 9 {
		t.Errorf("%d made, %d refused", made, refused)
	}
}

// A VMM that is stopped is noticed within ten seconds and taken down.
func TestHangingVMM(t *testing.T) {
	h := newHost(t, patient)
	before := takeState(t)
	id := h.createLimited(t, sandbox.Limits{})
	failed := make(chan error, 1)
	go func() {
		_, err := h.engine.Exec(context.WithoutCancel(t.Context()), id, sandbox.ExecRequest{Code: "sleep 60"})
		failed <- err
	}()
	h.awaitExec(t, id)
	vmm := h.vmm(t, string(id))
	began := time.Now()
	if err := syscall.Kill(vmm, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err := <-failed
	took := time.Since(began)
	if code, msg := sandbox.Public(err); code != sandbox.CodeLost || !strings.Contains(msg, "did not answer") || took > 10*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	t.Logf("noticed after %v", took.Round(time.Millisecond))
	h.awaitGone(t, id, 5*time.Second)
	if !strings.Contains(h.log.String(), "its agent did not answer") {
		t.Error("the log does not say what happened")
	}
	checkState(t, before)
}

// awaitExec waits until a program runs in the sandbox.
func (h *host) awaitExec(t *testing.T, id sandbox.ID) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		sb, err := h.engine.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		if sb.IdleExpiresAt.IsZero() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no program runs")
		}
	}
}

// A VMM that is killed while its VM is created ends the create at once, whatever
// the moment.
func TestVMMDeathWhileCreating(t *testing.T) {
	h := newHost(t)
	before := takeState(t)
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 300 * time.Millisecond, time.Second} {
		failed := make(chan error, 1)
		go func() {
			_, err := h.engine.Create(context.WithoutCancel(t.Context()), sandbox.Spec{Pack: "shell"})
			failed <- err
		}()
		vmm := awaitVMM(t)
		time.Sleep(after)
		killed := time.Now()
		if err := syscall.Kill(vmm, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		err := <-failed
		if took := time.Since(killed); !errors.Is(err, sandbox.ErrBoot) || took > 2*time.Second {
			t.Errorf("killed %v after it began: %v after %v, want a boot error within 2s", after, err, took)
		}
		checkState(t, before)
	}
	if list := h.engine.List(); len(list) > 0 {
		t.Errorf("listed: %v", list)
	}
}

// awaitVMM returns the process id of a VMM, once there is one.
func awaitVMM(t *testing.T) int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		members, err := filepath.Glob("/sys/fs/cgroup/emberd-*/*/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range members {
			list, _ := os.ReadFile(file) // it may be gone again
			for pid := range strings.FieldsSeq(string(list)) {
				name, _ := os.ReadFile("/proc/" + pid + "/comm")
				if n, err := strconv.Atoi(pid); err == nil && string(name) == "firecracker\n" {
					return n
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("no VMM appeared")
		}
	}
}
