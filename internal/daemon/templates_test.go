package daemon

import (
	"errors"
	"testing"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/sandbox"
)

// serve runs a daemon until the test ends and returns a client of it.
func serve(t *testing.T, cfg Config) (*client.Client, *engine.Engine) {
	t.Helper()
	d := run(t, cfg)
	return client.New(d.Addr()), d.Engine()
}

func TestTemplatesOverTheAPI(t *testing.T) {
	c, e := serve(t, fakeConfig(t))
	ctx := t.Context()
	made, err := c.BuildTemplate(ctx, rest.TemplateRequest{LanguagePack: "shell", MemoryMiB: 512})
	if err != nil || made.State != "ready" || made.Size.MemoryMiB != 512 || made.LanguagePack != "shell" {
		t.Fatalf("built %+v, %v", made, err)
	}
	list, err := c.Templates(ctx)
	found := false
	for _, l := range list {
		found = found || l == made
	}
	if err != nil || !found {
		t.Errorf("listed %+v, %v", list, err)
	}
	sb, err := e.Create(ctx, sandbox.Spec{
		Pack: "shell", BootPath: sandbox.Restored, Limits: sandbox.Limits{Size: sandbox.Size{MemoryMiB: 512}, DiskMiB: 7, PIDs: 99},
	})
	if err != nil || sb.BootPath != sandbox.Restored {
		t.Errorf("restored: %+v, %v", sb, err)
	}
	if err := c.DeleteTemplate(ctx, made.ID); err != nil {
		t.Error(err)
	}
	for _, id := range []string{made.ID, "..", "0123456789abcdef", "lock"} {
		err := c.DeleteTemplate(ctx, id)
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status < 400 || e.Status > 499 {
			t.Errorf("removed %q: %v", id, err)
		}
	}
	for _, req := range []rest.TemplateRequest{{LanguagePack: "ruby"}, {MemoryMiB: 1}, {VCPUs: 99}} {
		_, err := c.BuildTemplate(ctx, req)
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 400 {
			t.Errorf("built %+v: %v", req, err)
		}
	}
}

func TestDaemonWithoutTemplates(t *testing.T) {
	cfg := fakeConfig(t)
	cfg.Templates = false
	c, _ := serve(t, cfg)
	_, err := c.BuildTemplate(t.Context(), rest.TemplateRequest{LanguagePack: "shell"})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != "no_capacity" {
		t.Errorf("built: %v", err)
	}
	if list, err := c.Templates(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("listed %+v, %v", list, err)
	}
	if err := c.DeleteTemplate(t.Context(), "x"); err == nil {
		t.Error("removed")
	}
}
