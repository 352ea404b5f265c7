package real

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/doctor"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/sandbox"
)

// buildTemplate makes the template of a pack at the default size.
func (h *host) buildTemplate(t *testing.T, name string) (template.Info, error) {
	t.Helper()
	packs, err := pack.Load(h.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := packs.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return h.templates.Build(t.Context(), template.Kind{Pack: p, Size: h.cfg.Limits.Default.Size})
}

func TestRestore(t *testing.T) {
	h := newHost(t, func(c *daemon.Config) { c.Templates, c.Shells = true, 2 })
	began := time.Now()
	info, err := h.buildTemplate(t, "python")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("built in %v: %+v", time.Since(began), info)
	for range 5 {
		began := time.Now()
		sb, err := h.engine.Create(t.Context(), sandbox.Spec{Pack: "python", BootPath: sandbox.Restored})
		if err != nil {
			t.Fatal(err)
		}
		created := time.Since(began)
		began = time.Now()
		res, err := h.Exec(t.Context(), string(sb.ID), client.Program{Code: "print(6*7)"})
		if err != nil || string(res.Stdout) != "42\n" {
			t.Errorf("%q %q, %v", res.Stdout, res.Stderr, err)
		}
		first := time.Since(began)
		began = time.Now()
		if _, err := h.Exec(t.Context(), string(sb.ID), client.Program{Code: "print(6*7)"}); err != nil {
			t.Error(err)
		}
		t.Logf("create %v, first exec %v, second %v, PSS %d KiB", created, first, time.Since(began), pss(t, h.vmm(t, string(sb.ID))))
		if err := h.Delete(t.Context(), string(sb.ID)); err != nil {
			t.Error(err)
		}
	}
}

// Clones of one template have nothing in common that they must not have.
func TestClonesDiffer(t *testing.T) {
	h := newHost(t, func(c *daemon.Config) { c.Templates, c.Shells = true, 2 })
	for _, r := range doctor.CheckRestore(t.Context(), h.Client) {
		t.Logf("%s %s: %s", r.Verdict, r.Name, r.Reason)
		if r.Verdict != doctor.OK {
			t.Errorf("%s: %s", r.Name, r.Reason)
		}
	}
}

// What was changed on the disk is never given to a VMM: the template is refused,
// the sandbox is booted, and a new template is made.
func TestSpoiledTemplateIsRefused(t *testing.T) {
	h := newHost(t, func(c *daemon.Config) { c.Templates = true })
	info, err := h.buildTemplate(t, "shell")
	if err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(h.cfg.DataDir.Templates(), info.ID, "mem")
	if err := errors.Join(os.Remove(memory), os.WriteFile(memory, nil, 0o444)); err != nil {
		t.Fatal(err)
	}
	sb, err := h.engine.Create(t.Context(), sandbox.Spec{Pack: "shell"})
	if err != nil || sb.BootPath != sandbox.ColdBoot {
		t.Errorf("%s, %v", sb.BootPath, err)
	}
	if !strings.Contains(h.log.String(), "template is discarded") {
		t.Error("the log does not say so")
	}
	if _, err := os.Stat(memory); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// A VMM that dies while it waits for its VM is replaced, and leaves nothing.
func TestDeadShellIsReplaced(t *testing.T) {
	newHost(t, func(c *daemon.Config) { c.Templates, c.Shells = true, 1 })
	shells := func() []int {
		t.Helper()
		var pids []int
		procs, err := filepath.Glob("/sys/fs/cgroup/emberd-*/vm-*/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range procs {
			b, _ := os.ReadFile(file)
			for field := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(field); err == nil {
					pids = append(pids, pid)
				}
			}
		}
		return pids
	}
	await := func(other []int) []int {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			now := shells()
			if len(now) == 1 && !slices.Equal(now, other) {
				return now
			}
		}
		t.Fatalf("VMMs: %v, were %v", shells(), other)
		return nil
	}
	first := await(nil)
	if err := syscall.Kill(first[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(first)
}
