package setup

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/digest"
	"github.com/emberd/emberd/internal/x/progress"
	"github.com/emberd/emberd/internal/x/source"
	"github.com/emberd/emberd/internal/x/swapdir"
)

// The release that is fetched where the host brings none, and the SHA-256 of
// its two executables.
const (
	pinnedVMM       = "1.12.1"
	pinnedVMMSum    = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"
	pinnedJailerSum = "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5"
)

// The names of the executables, in every source and in the data directory.
const (
	vmmName    = "firecracker"
	jailerName = "jailer"
)

// vmmRecord says where Firecracker and its jailer are from.
type vmmRecord struct {
	Version string `json:"version"`
	Source  string `json:"source"`
	// Firecracker and Jailer are SHA-256 sums.
	Firecracker string `json:"firecracker"`
	Jailer      string `json:"jailer"`
}

// firecrackerMissing compares what is installed with its record, and with the
// directory the user named if there is one.
func (c Config) firecrackerMissing() (string, error) {
	rec, err := source.Read[vmmRecord](filepath.Dir(c.Data.Firecracker()))
	if err != nil {
		return "", err
	}
	if rec.Version == "" {
		return "not installed", nil
	}
	if wantSum(c.Data.Firecracker(), rec.Firecracker) != nil || wantSum(c.Data.Jailer(), rec.Jailer) != nil {
		return "not as it was installed", nil
	}
	if c.Firecracker == "" {
		return "", nil
	}
	vmm, jailer, err := inDir(c.Firecracker)
	if err != nil {
		return "", err
	}
	if wantSum(vmm, rec.Firecracker) != nil || wantSum(jailer, rec.Jailer) != nil {
		return "another one is wanted", nil
	}
	return "", nil
}

func (c Config) makeFirecracker(ctx context.Context, work string, report progress.Func) error {
	fresh := paths.Data(filepath.Join(work, "data"))
	dir := filepath.Dir(fresh.Firecracker())
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the machine reads it, as an ordinary user
		return err
	}
	from, err := c.fillDir(ctx, dir, work, report)
	if err != nil {
		return err
	}
	rec := vmmRecord{Source: from}
	if rec.Version, err = checkVMM(ctx, fresh.Firecracker(), fresh.Jailer()); err != nil {
		return err
	}
	if rec.Firecracker, err = digest.File(fresh.Firecracker()); err != nil {
		return err
	}
	if rec.Jailer, err = digest.File(fresh.Jailer()); err != nil {
		return err
	}
	if err := source.Write(dir, rec); err != nil {
		return err
	}
	return swapdir.Publish(dir, filepath.Dir(c.Data.Firecracker()))
}

// fillDir puts the two executables into dir, from the first source that has
// them, and returns its name. What was fetched is checked against the pinned
// sums; what the user brought is the user's.
func (c Config) fillDir(ctx context.Context, dir, work string, report progress.Func) (string, error) {
	if c.Firecracker != "" {
		vmm, jailer, err := inDir(c.Firecracker)
		if err != nil {
			return "", err
		}
		return c.Firecracker, copyBoth(ctx, dir, vmm, jailer)
	}
	var errs []error
	vmm, vmmErr := exec.LookPath(vmmName)
	jailer, jailerErr := exec.LookPath(jailerName)
	if vmmErr == nil && jailerErr == nil {
		err := copyBoth(ctx, dir, vmm, jailer)
		if err == nil {
			return vmm, nil
		}
		errs = append(errs, err)
	}
	for _, s := range []struct {
		name  string
		fetch func(ctx context.Context, dir, work string, report progress.Func) error
	}{
		{"official release", fetchRelease},
		{"Python wheel", fetchWheel},
	} {
		report.Step("fetching Firecracker %s (%s)", pinnedVMM, s.name)
		err := s.fetch(ctx, dir, work, report)
		if err == nil {
			err = errors.Join(
				wantSum(filepath.Join(dir, vmmName), pinnedVMMSum),
				wantSum(filepath.Join(dir, jailerName), pinnedJailerSum))
		}
		if err == nil {
			return s.name, nil
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
	}
	return "", fmt.Errorf("%w\nbring your own with --firecracker DIR", errors.Join(errs...))
}

// inDir finds the two executables in a directory: by their plain names, or by
// those they have in an official release.
func inDir(dir string) (vmm, jailer string, err error) {
	find := func(name string) string {
		plain := filepath.Join(dir, name)
		if _, err := os.Stat(plain); err == nil {
			return plain
		}
		released, _ := filepath.Glob(filepath.Join(dir, name+"-v*-x86_64"))
		if len(released) == 1 {
			return released[0]
		}
		return ""
	}
	vmm, jailer = find(vmmName), find(jailerName)
	if vmm == "" || jailer == "" {
		return "", "", fmt.Errorf("no executables firecracker and jailer in %s", dir)
	}
	return vmm, jailer, nil
}

// copyBoth copies the user's executables to dir if emberd works with them.
func copyBoth(ctx context.Context, dir, vmm, jailer string) error {
	if _, err := checkVMM(ctx, vmm, jailer); err != nil {
		return err
	}
	for name, path := range map[string]string{vmmName: vmm, jailerName: jailer} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = writeExecutable(filepath.Join(dir, name), f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// maxExecutable bounds what is read as an executable of Firecracker; a build
// with symbols has about 60 MB.
const maxExecutable = 256 << 20

func writeExecutable(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755) //nolint:gosec // an executable
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, maxExecutable+1))
	if n > maxExecutable {
		err = fmt.Errorf("%s is larger than %d MiB", filepath.Base(path), maxExecutable>>20)
	}
	return errors.Join(err, f.Close())
}

// checkVMM returns the release of the two executables if emberd works with it.
func checkVMM(ctx context.Context, vmm, jailer string) (string, error) {
	for _, path := range []string{vmm, jailer} {
		if err := checkStatic(path); err != nil {
			return "", err
		}
	}
	return firecracker.CheckVersions(ctx, vmm, jailer)
}

// checkStatic refuses an executable that needs a dynamic loader: the chroot it
// runs in has none.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is no executable: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked and cannot run in its jail: use a static build", path)
		}
	}
	return nil
}

// executableOf maps the path of a file in an archive to the executable it is,
// or "": names of archive members are never used as paths.
func executableOf(member string, names map[string]string) string {
	return names[strings.TrimPrefix(member, "./")]
}
