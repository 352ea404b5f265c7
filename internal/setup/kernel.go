package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/progress"
	"github.com/emberd/emberd/internal/x/source"
	"github.com/emberd/emberd/internal/x/swapdir"
)

// Kernel says which kernel sandboxes get. The machine always gets Debian's.
type Kernel string

// The kernels. The zero Kernel is the one that is installed, or Debian's.
const (
	// KernelDebian is Debian's for virtual machines, as it is.
	KernelDebian Kernel = "debian"
	// KernelBuild is built from the source of the same, for sandboxes alone.
	KernelBuild Kernel = "build"
)

// kernelPackage is the kernel that emberd is tested with.
func kernelPackage() debianPackage {
	return debianPackage{
		what: "the kernel", name: "linux-image-6.1.0-56-cloud-amd64", version: "6.1.192-2",
		sum:          "e7d02b943971edcb8790e256c02cfab3bca6c3d37c1bf25392a57c71300615ee",
		prefix:       "linux-image-6.1.0-",
		series:       regexp.MustCompile(`^linux-image-6\.1\.0-(\d+)-cloud-amd64$`),
		suitePackage: "linux-image-cloud-amd64",
	}
}

// resolve gives the zero Kernel its meaning.
func (k Kernel) resolve(data paths.Data) (Kernel, error) {
	switch k {
	case KernelDebian, KernelBuild:
		return k, nil
	case "":
		rec, err := source.Read[kernel.Record](data.GuestKernel())
		if rec.Build != nil {
			return KernelBuild, err
		}
		return KernelDebian, err
	default:
		return "", fmt.Errorf("kernel %q: want %s or %s", string(k), KernelDebian, KernelBuild)
	}
}

// installation is one place that a kernel of Debian's is installed to.
type installation struct {
	dir     func(paths.Data) string
	files   func(paths.Data) kernel.Files
	modules []string
	install func(tree string, to kernel.Files) error
}

func guestFiles(d paths.Data) kernel.Files {
	return kernel.Files{Image: d.Vmlinux(), Modules: d.GuestModules()}
}

func machineFiles(d paths.Data) kernel.Files {
	return kernel.Files{Image: d.Vmlinuz(), Modules: d.MachineModules()}
}

// installations returns the places that are to hold Debian's kernel.
func (c Config) installations() []installation {
	var list []installation
	if c.Kernel == KernelDebian {
		list = append(list, installation{paths.Data.GuestKernel, guestFiles, kernel.GuestModules(), kernel.InstallGuest})
	}
	if c.Machine {
		list = append(list, installation{paths.Data.MachineKernel, machineFiles, kernel.MachineModules(), kernel.InstallMachine})
	}
	return list
}

// missing reports why Debian's kernel has to be installed here, or "".
func (i installation) missing(data paths.Data) (string, error) {
	rec, err := source.Read[kernel.Record](i.dir(data))
	if err != nil {
		return "", err
	}
	switch {
	case rec.Version == "":
		return "not installed", nil
	case rec.Build != nil:
		return "a built one is installed", nil
	case rec.Pin != kernelPackage().version:
		return "another version is wanted", nil
	case rec.Parts != kernelParts(i.modules):
		return "other modules are wanted", nil
	}
	return incomplete(i.files(data)), nil
}

// kernelParts identifies a set of modules.
func kernelParts(modules []string) string {
	sum := sha256.Sum256([]byte(strings.Join(modules, "\n")))
	return hex.EncodeToString(sum[:8])
}

func incomplete(files kernel.Files) string {
	for _, path := range []string{files.Image, files.Modules} {
		if _, err := os.Stat(path); err != nil {
			return "incomplete"
		}
	}
	return ""
}

func (c Config) kernelMissing() (string, error) {
	for _, i := range c.installations() {
		if why, err := i.missing(c.Data); why != "" || err != nil {
			return why, err
		}
	}
	return "", nil
}

func (c Config) makeKernel(ctx context.Context, work string, report progress.Func) error {
	pkg := kernelPackage()
	deb, err := pkg.fetch(ctx, work, report)
	if err != nil {
		return err
	}
	report.Step("unpacking the kernel")
	tree := filepath.Join(work, "tree")
	rec, err := pkg.unpack(ctx, deb, tree)
	if err != nil {
		return err
	}
	// The same names below another root, to be moved over as one.
	fresh := paths.Data(filepath.Join(work, "data"))
	for _, i := range c.installations() {
		if why, err := i.missing(c.Data); why == "" && err == nil {
			continue
		}
		if err := i.install(tree, i.files(fresh)); err != nil {
			return err
		}
		rec.Parts = kernelParts(i.modules)
		if err := publish(i.dir(fresh), i.dir(c.Data), rec); err != nil {
			return err
		}
	}
	return nil
}

// publish makes the directory fresh with its record the directory dir.
func publish(fresh, dir string, rec kernel.Record) error {
	if err := source.Write(fresh, rec); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // the machine reads it, as an ordinary user
		return err
	}
	return swapdir.Publish(fresh, dir)
}
