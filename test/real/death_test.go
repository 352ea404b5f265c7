package real

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/sandbox"
)

// How long after the end of a VMM whoever waits for it is told, and how long
// after that nothing of it is left.
const (
	toldLimit  = 2 * time.Second
	freedLimit = 5 * time.Second
)

// mourning is what was measured of deaths.
type mourning struct {
	told, freed []time.Duration
	kinds       map[string]int
}

func (m *mourning) add(t *testing.T, kind string, told, freed time.Duration) {
	t.Helper()
	m.kinds[kind]++
	m.told, m.freed = append(m.told, told), append(m.freed, freed)
	if told > toldLimit || freed > freedLimit {
		t.Errorf("%s: told after %v, freed after %v", kind, told, freed)
	}
}

// Fifty VMMs are killed, at any moment of a restore, under an idle sandbox, under
// a program, and while a template is made. Whoever waits is told, and nothing is
// left. Booting fifty would take too long where all that is emulated.
func TestVMMDeaths(t *testing.T) {
	h := newHost(t, patient, func(c *daemon.Config) { c.Templates, c.Shells = true, 2 })
	began := time.Now()
	if _, err := h.buildTemplate(t, "shell"); err != nil {
		t.Fatal(err)
	}
	build := time.Since(began)
	began = time.Now()
	h.delete(t, h.restore(t))
	restore := time.Since(began)
	m := &mourning{kinds: map[string]int{}}
	for range 16 { // three restores that fail in a row would cost the template
		h.dieRestoring(t, m, rand.N(restore))
		h.dieRunning(t, m)
		h.dieUnderExec(t, m)
	}
	const builds = 3
	for i := range builds { // one in each part of the time that it takes
		for !h.dieInTemplate(t, m, (time.Duration(i)*build+rand.N(build))/builds) {
		}
	}
	slices.Sort(m.told)
	slices.Sort(m.freed)
	n := len(m.told)
	t.Logf("%d deaths, %v: told after %v (p50), %v (at most); freed after %v, %v",
		n, m.kinds, m.told[n/2], m.told[n-1], m.freed[n/2], m.freed[n-1])
	if n < 50 {
		t.Errorf("%d deaths, want 50", n)
	}
}

// restore makes a sandbox from the template of the shell pack.
func (h *host) restore(t *testing.T) sandbox.ID {
	t.Helper()
	sb, err := h.engine.Create(t.Context(), sandbox.Spec{Pack: "shell", BootPath: sandbox.Restored})
	if err != nil {
		t.Fatal(err)
	}
	return sb.ID
}

func (h *host) delete(t *testing.T, id sandbox.ID) {
	t.Helper()
	if err := h.engine.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// dieRestoring kills the VMM of a create, some time after it was chosen. The
// create fails, or was over before.
func (h *host) dieRestoring(t *testing.T, m *mourning, after time.Duration) {
	t.Helper()
	type created struct {
		sb  sandbox.Sandbox
		err error
		at  time.Time
	}
	done := make(chan created, 1)
	go func() {
		sb, err := h.engine.Create(context.WithoutCancel(t.Context()), sandbox.Spec{Pack: "shell", BootPath: sandbox.Restored})
		done <- created{sb, err, time.Now()}
	}()
	vm := h.awaitVM(t)
	time.Sleep(after)
	killed := h.kill(t, vm)
	got := <-done
	switch {
	case got.err == nil && got.at.Before(killed):
		h.awaitGone(t, got.sb.ID, freedLimit)
		m.add(t, "running", time.Since(killed), h.awaitFreed(t, vm, killed))
	case got.err == nil: // the agent had answered, and the end came behind that
		h.awaitGone(t, got.sb.ID, freedLimit)
		m.add(t, "created", time.Since(killed), h.awaitFreed(t, vm, killed))
	default:
		if !errors.Is(got.err, sandbox.ErrBoot) {
			t.Errorf("killed %v after its VMM was chosen, a create says %v", after, got.err)
		}
		m.add(t, "creating", got.at.Sub(killed), h.awaitFreed(t, vm, killed))
	}
}

func (h *host) dieRunning(t *testing.T, m *mourning) {
	t.Helper()
	id := h.restore(t)
	vm := h.vmOf(t, id)
	time.Sleep(rand.N(200 * time.Millisecond))
	killed := h.kill(t, vm)
	h.awaitGone(t, id, freedLimit)
	m.add(t, "running", time.Since(killed), h.awaitFreed(t, vm, killed))
}

func (h *host) dieUnderExec(t *testing.T, m *mourning) {
	t.Helper()
	id := h.restore(t)
	vm := h.vmOf(t, id)
	failed := make(chan error, 1)
	go func() {
		_, err := h.engine.Exec(context.WithoutCancel(t.Context()), id, sandbox.ExecRequest{Code: "while :; do echo x; done"})
		failed <- err
	}()
	h.awaitExec(t, id)
	time.Sleep(rand.N(200 * time.Millisecond))
	killed := h.kill(t, vm)
	err := <-failed
	told := time.Since(killed)
	if code, msg := sandbox.Public(err); code != sandbox.CodeLost || !strings.Contains(msg, "its exit code is unknown") {
		t.Errorf("exec: %v", err)
	}
	h.awaitGone(t, id, freedLimit)
	m.add(t, "exec", told, h.awaitFreed(t, vm, killed))
}

// dieInTemplate kills every VMM some time after the making of a template began:
// it boots, is written to a file, or is the first that is restored from it. It
// tells whether that was before the template was made.
func (h *host) dieInTemplate(t *testing.T, m *mourning, after time.Duration) bool {
	t.Helper()
	for _, info := range h.templates.List() {
		if info.ID == "" {
			continue // one that could not be made
		}
		if err := h.templates.Remove(info.ID); err != nil {
			t.Fatal(err)
		}
	}
	made := make(chan error, 1)
	go func() {
		_, err := h.buildTemplate(t, "shell")
		made <- err
	}()
	time.Sleep(after)
	phase, vms := "", []string{}
	for !slices.Contains([]string{"booting", "warming up", "snapshotting", "restoring"}, phase) || len(vms) == 0 {
		select {
		case err := <-made:
			t.Logf("a template was made before %v were over: %v", after, err)
			return false
		case <-time.After(10 * time.Millisecond):
		}
		for _, info := range h.templates.List() {
			phase = info.Phase
		}
		vms = h.vms(t)
	}
	killed := time.Now()
	for _, vm := range vms {
		h.kill(t, vm)
	}
	if err := <-made; err == nil {
		t.Logf("a template was made, as its last VM had done what it had to when it was killed while %s", phase)
		return false
	}
	told := time.Since(killed)
	var freed time.Duration
	for _, vm := range vms {
		freed = h.awaitFreed(t, vm, killed)
	}
	m.add(t, "template, "+phase, told, freed)
	if left, _ := filepath.Glob(filepath.Join(h.cfg.DataDir.Templates(), "*", "*")); len(left) > 0 {
		t.Errorf("a template that failed left %v", left)
	}
	return true
}

// vms are the VMMs of this host's daemon, by the ids of their microVMs.
func (h *host) vms(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/emberd-*/vm-*")
	if err != nil {
		t.Fatal(err)
	}
	for i, dir := range dirs {
		dirs[i] = filepath.Base(dir)
	}
	return dirs
}

// awaitVM returns the microVM of the sandbox that is being created, once it was
// chosen.
func (h *host) awaitVM(t *testing.T) string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, r := range h.records(t) {
			if r.State == sandbox.Creating && r.VM != "" {
				return string(r.VM)
			}
		}
	}
	t.Fatal("no VM was chosen")
	return ""
}

func (h *host) vmOf(t *testing.T, id sandbox.ID) string {
	t.Helper()
	sb, err := h.engine.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return string(sb.VM)
}

// records are what the disk says of sandboxes.
func (h *host) records(t *testing.T) (all []sandbox.Sandbox) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.cfg.RunDir.Sandboxes(), "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		var record struct {
			Sandbox sandbox.Sandbox `json:"sandbox"`
		}
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it may be gone again
		}
		if err := json.Unmarshal(b, &record); err != nil {
			t.Fatal(err)
		}
		all = append(all, record.Sandbox)
	}
	return all
}

// kill ends the VMM of a microVM, and returns when that was.
func (h *host) kill(t *testing.T, vm string) time.Time {
	t.Helper()
	now := time.Now()
	procs, err := filepath.Glob("/sys/fs/cgroup/emberd-*/" + vm + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range procs {
		b, _ := os.ReadFile(file) // it may be gone
		for field := range strings.FieldsSeq(string(b)) {
			var pid int
			if _, err := fmt.Sscan(field, &pid); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	return now
}

// awaitFreed waits until neither cgroup, root directory nor record of a microVM
// is left, and returns how long that took since it was killed.
func (h *host) awaitFreed(t *testing.T, vm string, killed time.Time) time.Duration {
	t.Helper()
	for deadline := killed.Add(2 * freedLimit); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		_, root := os.Lstat(filepath.Join(h.cfg.DataDir.Jails(), "firecracker", vm))
		recorded := slices.ContainsFunc(h.records(t), func(sb sandbox.Sandbox) bool { return string(sb.VM) == vm })
		if os.IsNotExist(root) && !recorded && !slices.Contains(h.vms(t), vm) {
			break
		}
	}
	return time.Since(killed)
}

// A VMM that grows beyond what it was promised is ended by the kernel of the
// host, and the reason is told.
func TestHostRunsOutOfMemory(t *testing.T) {
	h := newHost(t, patient)
	id := h.createLimited(t, sandbox.Limits{})
	in, err := h.Inspect(t.Context(), string(id))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := h.engine.Exec(context.WithoutCancel(t.Context()), id, sandbox.ExecRequest{Code: "sleep 60"})
		failed <- err
	}()
	h.awaitExec(t, id)
	limit := filepath.Join("/sys/fs/cgroup", in.Jail.Cgroup, "memory.max")
	if err := os.WriteFile(limit, []byte("1M"), 0); err != nil {
		t.Fatal(err)
	}
	const why = "its microVM was ended by the host's OOM killer"
	if code, msg := sandbox.Public(<-failed); code != sandbox.CodeLost || !strings.Contains(msg, why) {
		t.Errorf("exec: %s: %s", code, msg)
	}
	h.awaitGone(t, id, 5*time.Second)
	h.awaitLog(t, why)
}
