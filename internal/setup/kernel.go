package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/emberd/emberd/internal/debstrap"
	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/progress"
	"github.com/emberd/emberd/internal/x/swapdir"
)

// The kernel that emberd is tested with, Debian's for virtual machines.
const (
	pinnedKernel        = "linux-image-6.1.0-56-cloud-amd64"
	pinnedKernelVersion = "6.1.192-2"
	pinnedKernelSum     = "e7d02b943971edcb8790e256c02cfab3bca6c3d37c1bf25392a57c71300615ee"
	// kernelSuite is the Debian release that kernels of its series come from.
	kernelSuite = "bookworm"
)

// cloudKernel matches the packages that may stand in for the pinned one.
var cloudKernel = regexp.MustCompile(`^linux-image-6\.1\.0-(\d+)-cloud-amd64$`)

// kernelRecord says which package the kernel is from.
type kernelRecord struct {
	Package string `json:"package"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
	// Pin is the version that was wanted. The mirror may no longer have had it,
	// and then Version differs.
	Pin string `json:"pin"`
	// Parts identifies what was taken from the package.
	Parts string `json:"parts"`
}

// kernelParts identifies the set of modules that package kernel would install.
func kernelParts() string {
	list := slices.Concat(kernel.GuestModules(), kernel.MachineModules())
	sum := sha256.Sum256([]byte(strings.Join(list, "\n")))
	return hex.EncodeToString(sum[:8])
}

func (c Config) kernelMissing() (string, error) {
	rec, err := readRecord[kernelRecord](filepath.Dir(c.Data.Vmlinux()))
	if err != nil {
		return "", err
	}
	switch {
	case rec.Version == "":
		return "not installed", nil
	case rec.Pin != pinnedKernelVersion:
		return "another version is wanted", nil
	case rec.Parts != kernelParts():
		return "other modules are wanted", nil
	}
	for _, path := range []string{c.Data.Vmlinux(), c.Data.Vmlinuz(), c.Data.Modules()} {
		if _, err := os.Stat(path); err != nil {
			return "incomplete", nil
		}
	}
	return "", nil
}

func (c Config) makeKernel(ctx context.Context, work string, report progress.Func) error {
	deb, err := fetchKernel(ctx, work, report)
	if err != nil {
		return err
	}
	rec := kernelRecord{Pin: pinnedKernelVersion, Parts: kernelParts()}
	if rec.SHA256, err = fileSum(deb); err != nil {
		return err
	}
	if rec.Package, err = debField(ctx, deb, "Package"); err != nil {
		return err
	}
	if rec.Version, err = debField(ctx, deb, "Version"); err != nil {
		return err
	}
	if rec.Package == pinnedKernel && rec.Version == pinnedKernelVersion && rec.SHA256 != pinnedKernelSum {
		return fmt.Errorf("%s has sha256 %s, want %s", filepath.Base(deb), rec.SHA256, pinnedKernelSum)
	}
	report.Step("unpacking the kernel")
	tree := filepath.Join(work, "tree")
	if _, err := command.Run(ctx, "dpkg-deb", "--extract", deb, tree); err != nil {
		return err
	}
	// The same names below another root, to be moved over as one.
	fresh := paths.Data(filepath.Join(work, "data"))
	files := kernel.Files{Vmlinuz: fresh.Vmlinuz(), Vmlinux: fresh.Vmlinux(), Modules: fresh.Modules()}
	if err := kernel.Install(tree, files); err != nil {
		return err
	}
	dir := filepath.Dir(fresh.Vmlinux())
	if err := writeRecord(dir, rec); err != nil {
		return err
	}
	return swapdir.Publish(dir, filepath.Dir(c.Data.Vmlinux()))
}

// fetchKernel puts a kernel package into work and returns its path. Whatever
// its version, apt has verified it against the archive's signed index. It is
// the pinned version where that can be had, else the newest of the same series.
func fetchKernel(ctx context.Context, work string, report progress.Func) (string, error) {
	report.Step("fetching the kernel")
	pinned := pinnedKernel + "=" + pinnedKernelVersion
	deb, err := aptDownload(ctx, work, pinned)
	if err == nil || ctx.Err() != nil {
		return deb, err
	}
	if err := aptUpdate(ctx, report); err != nil {
		return "", err
	}
	report.Step("fetching the kernel")
	deb, err = aptDownload(ctx, work, pinned)
	if err == nil || ctx.Err() != nil {
		return deb, err
	}
	errs := []error{err}
	if name, err := newestKernel(ctx); err != nil {
		errs = append(errs, err)
	} else if name != "" {
		report.Step("fetching %s, since %s is not to be had", name, pinnedKernelVersion)
		deb, err := aptDownload(ctx, work, name)
		if err == nil || ctx.Err() != nil {
			return deb, err
		}
		errs = append(errs, err)
	}
	// This host's own sources have no such kernel: it is not Debian 12.
	report.Step("fetching the kernel from Debian %s", kernelSuite)
	deb, err = debstrapKernel(ctx, work)
	if err != nil {
		return "", errors.Join(append(errs, err)...)
	}
	return deb, nil
}

// aptDownload fetches one package into dir, as this host's apt is configured.
func aptDownload(ctx context.Context, dir, pkg string) (string, error) {
	_, err := command.Cmd{Name: "apt-get", Args: []string{"download", "--quiet", pkg}, Dir: dir}.Run(ctx)
	if err != nil {
		return "", err
	}
	return onlyDeb(dir)
}

// debstrapKernel fetches the newest kernel of the series from Debian itself.
func debstrapKernel(ctx context.Context, work string) (string, error) {
	archives, err := debstrap.Extract(ctx, debstrap.Request{
		Suite: kernelSuite, Packages: []string{"linux-image-cloud-amd64", "usr-is-merged"},
		Tree: filepath.Join(work, "debian"), Tmp: work,
	})
	if err != nil {
		return "", err
	}
	return onlyDeb(archives)
}

func onlyDeb(dir string) (string, error) {
	debs, err := filepath.Glob(filepath.Join(dir, "linux-image-*-cloud-amd64_*.deb"))
	if err != nil {
		return "", err
	}
	debs = slices.DeleteFunc(debs, func(path string) bool {
		name, _, _ := strings.Cut(filepath.Base(path), "_")
		return !cloudKernel.MatchString(name)
	})
	if len(debs) != 1 {
		return "", fmt.Errorf("want one kernel package in %s, have %q", dir, debs)
	}
	return debs[0], nil
}

// newestKernel returns the newest package in apt's index that may stand in for
// the pinned one, or "".
func newestKernel(ctx context.Context) (string, error) {
	out, err := command.Run(ctx, "apt-cache", "pkgnames", "linux-image-6.1.0-")
	if err != nil {
		return "", err
	}
	return newest(strings.Fields(string(out))), nil
}

func newest(names []string) string {
	best, bestABI := "", -1
	for _, name := range names {
		m := cloudKernel.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if abi, err := strconv.Atoi(m[1]); err == nil && abi > bestABI {
			best, bestABI = name, abi
		}
	}
	return best
}

func debField(ctx context.Context, deb, field string) (string, error) {
	out, err := command.Run(ctx, "dpkg-deb", "--field", deb, field)
	return strings.TrimSpace(string(out)), err
}
