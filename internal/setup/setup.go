// Package setup fetches and builds everything emberd needs under one data
// directory: Firecracker and its jailer, a kernel, the language packs, and the
// host's tools that make them.
//
// It is a list of parts that each know whether they are there. Run makes those
// that are not, so running it again costs nothing, after an upgrade makes what
// changed, and after an interruption makes what is missing. Each part is
// verified before it appears under its name, all of its files at once. Beside
// the data directory only the package manager is touched, and only to install
// tools.
package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/lockfile"
	"github.com/emberd/emberd/internal/x/progress"
	"github.com/emberd/emberd/internal/x/source"
)

// Config says what to set up.
type Config struct {
	Data paths.Data
	// Firecracker is a directory with the executables firecracker and jailer to
	// use. If it is empty, those on PATH are used, else a release is fetched.
	Firecracker string
	// Kernel is the kernel of sandboxes.
	Kernel Kernel
	// Machine asks for QEMU and its kernel, which a host without usable KVM needs.
	Machine bool
}

// ErrRoot is returned when there is something to do and the caller is not root.
var ErrRoot = errors.New("this needs root: run it with sudo")

// ErrBusy is returned while another setup of the same data directory runs.
var ErrBusy = errors.New("another setup is running")

// Result is what a setup found or made.
type Result struct {
	// Made names the parts that were made, in order; it is empty if everything
	// was there.
	Made []string `json:"made"`
	// Firecracker is the version in the data directory, Kernel names the kernel
	// of sandboxes there.
	Firecracker string `json:"firecracker"`
	Kernel      string `json:"kernel"`
}

// part is something emberd needs.
type part struct {
	name string
	// missing reports why the part has to be made, or "".
	missing func() (string, error)
	// create makes the part, using the empty directory work as it likes.
	create func(ctx context.Context, work string, report progress.Func) error
}

// Run makes the parts that are missing. When it fails or ctx ends, the parts it
// finished remain and nothing else does.
func Run(ctx context.Context, cfg Config, report progress.Func) (Result, error) {
	var err error
	if cfg.Kernel, err = cfg.Kernel.resolve(cfg.Data); err != nil {
		return Result{}, err
	}
	parts, err := cfg.parts()
	if err != nil {
		return Result{}, err
	}
	res := Result{Made: []string{}}
	for _, p := range parts {
		why, err := p.missing()
		if err != nil {
			return res, fmt.Errorf("set up %s: %w", p.name, err)
		}
		if why == "" {
			continue
		}
		if os.Geteuid() != 0 {
			return res, fmt.Errorf("set up %s (%s): %w", p.name, why, ErrRoot)
		}
		if res.Made, err = cfg.create(ctx, parts, report); err != nil {
			return res, err
		}
		break
	}
	return res, res.versions(cfg.Data)
}

func (c Config) parts() ([]part, error) {
	packs, err := packParts(c.Data)
	if err != nil {
		return nil, err
	}
	parts := []part{
		{"host tools", c.toolsMissing, installTools(c)},
		{"firecracker", c.firecrackerMissing, c.makeFirecracker},
		{"kernel", c.kernelMissing, c.makeKernel},
	}
	if c.Kernel == KernelBuild {
		parts = append(parts, part{"built kernel", c.builtKernelMissing, c.buildKernel})
	}
	return append(parts, packs...), nil
}

// create makes the parts that are missing, as the only setup of the data
// directory, and returns their names.
func (c Config) create(ctx context.Context, parts []part, report progress.Func) (made []string, err error) {
	var undo cleanup.Stack
	defer func() { err = errors.Join(err, undo.Unwind(ctx)) }()

	release, err := lockfile.Take(filepath.Join(string(c.Data), "setup.lock"))
	if errors.Is(err, lockfile.ErrHeld) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	undo.Add("lock", func(context.Context) error { return release() })
	// One name for all: what a killed setup left is deleted by the next.
	work := filepath.Join(string(c.Data), ".setup")
	undo.Add("working directory", func(context.Context) error { return os.RemoveAll(work) })
	for _, p := range parts {
		why, err := p.missing()
		if err == nil && why == "" {
			continue
		}
		if err = errors.Join(err, os.RemoveAll(work), os.Mkdir(work, 0o700)); err == nil {
			err = p.create(ctx, work, report)
		}
		if err != nil {
			return made, fmt.Errorf("set up %s: %w", p.name, err)
		}
		made = append(made, p.name)
	}
	return made, nil
}

func (r *Result) versions(data paths.Data) error {
	vmm, err := source.Read[vmmRecord](filepath.Dir(data.Firecracker()))
	if err != nil {
		return err
	}
	guest, err := source.Read[kernel.Record](data.GuestKernel())
	if err != nil {
		return err
	}
	r.Firecracker, r.Kernel = vmm.Version, guest.String()
	return nil
}
