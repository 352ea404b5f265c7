package real

import (
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
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
	return h.templates.Build(t.Context(), p, h.cfg.Limits.Default.Size)
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
