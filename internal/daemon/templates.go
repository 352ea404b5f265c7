package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
)

// restoreTimeout is how long a restore may take before the microVM is booted
// instead. It takes a hundredth of that under emulation.
const restoreTimeout = 20 * time.Second

// buildBoots is how much longer the making of a template may take than a boot,
// which is a part of it.
const buildBoots = 3

// openTemplates returns what makes microVMs: by a restore if there are to be
// templates, and else by a boot.
func (d *Daemon) openTemplates(ctx context.Context, launcher firecracker.Launcher, packs *pack.Registry, records *store.Store, networks provision.Networks, foreground *provision.Foreground, release string) (provision.Provisioner, error) {
	cfg := d.cfg
	kernel, initrd := cfg.DataDir.Vmlinux(), cfg.DataDir.GuestInitramfs()
	cold := provision.NewCold(provision.ColdConfig{
		Launcher: launcher, Kernel: kernel, Initrd: initrd,
		Timeout: cfg.BootTimeout, Parallel: cfg.ParallelBoots, Records: records, Networks: networks,
		Log: cfg.Log, Faults: cfg.Faults,
	})
	if !cfg.Templates {
		return cold, nil
	}
	host := template.Host{}
	if cfg.Launcher == nil {
		var err error
		if host, err = template.ThisHost(ctx, cfg.DataDir.Firecracker(), release); err != nil {
			return nil, err
		}
	}
	templates, err := template.Open(ctx, template.Config{
		Cold: cold, Launcher: launcher, Packs: packs, Dir: cfg.DataDir.Templates(), Kernel: kernel, Initrd: initrd,
		Host: host, Size: cfg.Limits.Default.Size, Shells: cfg.Shells, Foreground: foreground, Parallel: cfg.ParallelBoots,
		BuildTimeout: buildBoots * cfg.BootTimeout, RestoreTimeout: restoreTimeout, Records: records, Networks: networks,
		Log: cfg.Log, Faults: cfg.Faults,
	})
	if err != nil {
		return nil, err
	}
	d.release.Add("templates", func(context.Context) error { return templates.Close() })
	d.templates = templates
	return templates, nil
}

// Templates are those that the daemon keeps, nil if it keeps none.
func (d *Daemon) Templates() *template.Templates { return d.templates }

// templateAPI is the templates in the API's words.
type templateAPI struct {
	templates *template.Templates
	packs     *pack.Registry
}

func (t templateAPI) Build(ctx context.Context, name string, size sandbox.Size, egress bool) (rest.Template, error) {
	p, err := t.packs.Get(name)
	if err != nil {
		return rest.Template{}, err
	}
	info, err := t.templates.Build(ctx, template.Kind{Pack: p, Size: size, Network: egress})
	if _, public := errors.AsType[*sandbox.Error](err); err != nil && !public {
		err = &sandbox.Error{Code: sandbox.CodeBoot, Message: "the template could not be built", Cause: err}
	}
	return describeTemplate(info), err
}

func (t templateAPI) List() []rest.Template {
	list := []rest.Template{}
	for _, info := range t.templates.List() {
		list = append(list, describeTemplate(info))
	}
	return list
}

func (t templateAPI) Remove(id string) error { return t.templates.Remove(id) }

func describeTemplate(i template.Info) rest.Template {
	return rest.Template{
		ID: i.ID, LanguagePack: i.Pack, Size: rest.Size{VCPUs: i.Size.VCPUs, MemoryMiB: i.Size.MemoryMiB},
		Egress: i.Network, State: string(i.State), Phase: i.Phase, CreatedAt: i.CreatedAt, Bytes: i.Bytes, Apparent: i.Apparent,
	}
}
