package machine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/progress"
)

// dataDiskSize is how large the data disk appears to the machine, in bytes. The
// file is sparse: it takes what was written.
const dataDiskSize = 16 << 30

// binaries are the programs on the system disk, by their names in the directory
// they come from.
func binaries() []string { return []string{"emberd", "emberctl", "emberd-init"} }

// The programs that make disks. mke2fs is where users have no PATH to.
const mksquashfs = "mksquashfs"

func mke2fs() string {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, "mke2fs")); err == nil {
			return path
		}
	}
	return "mke2fs"
}

// disk is a file that is made from others and made anew when they change.
type disk struct {
	path string
	what string
	// content maps a place on the disk to the file or directory that is put
	// there.
	content map[string]string
	// byContent says that a file has changed when its content has, and not when
	// its time has: go build touches what it leaves as it was.
	byContent bool
	make      func(ctx context.Context, dst, staged string) error
}

// disks returns the machine's disks as they are to be with cfg.
func (m Machine) disks(cfg Config) []disk {
	system := disk{path: m.systemDisk(), what: "system disk", make: makeSystemDisk, content: make(map[string]string), byContent: true}
	for _, name := range binaries() {
		system.content["bin/"+name] = filepath.Join(cfg.Bin, name)
	}
	data := disk{path: m.dataDisk(), what: "data disk", make: makeDataDisk, content: map[string]string{
		"firecracker/firecracker": cfg.Data.Firecracker(),
		"firecracker/jailer":      cfg.Data.Jailer(),
		"kernel/guest":            cfg.Data.GuestKernel(),
		"packs":                   cfg.Data.Packs(),
	}}
	return []disk{system, data}
}

// buildDisks brings the machine's disks and its initramfs up to date. The
// caller holds the lock.
func (m Machine) buildDisks(ctx context.Context, cfg Config, report progress.Func) error {
	for _, d := range m.disks(cfg) {
		if err := d.refresh(ctx, report); err != nil {
			return fmt.Errorf("make %s of machine %s: %w", d.what, m.Name, err)
		}
	}
	return kernel.BuildInitramfs(m.initramfs(), filepath.Join(cfg.Bin, "emberd-init"), cfg.Data.MachineModules(), kernel.MachineModules())
}

// Outdated reports whether a machine that is up would get other disks if it
// were started anew with cfg.
func (m Machine) Outdated(cfg Config) (bool, error) {
	for _, d := range m.disks(cfg) {
		if current, err := d.current(); !current || err != nil {
			return true, err
		}
	}
	return false, nil
}

// current reports whether the disk is there and made from what it should be.
func (d disk) current() (bool, error) {
	key, err := d.key()
	if err != nil {
		return false, err
	}
	have, err := os.ReadFile(d.keyFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	_, err = os.Stat(d.path)
	return err == nil && string(have) == key, nil
}

// keyFile holds what the disk was made from. Without it a disk counts as not
// there.
func (d disk) keyFile() string { return d.path + ".key" }

// refresh makes the disk if it is not there or was made from something else.
func (d disk) refresh(ctx context.Context, report progress.Func) error {
	if current, err := d.current(); current || err != nil {
		return err
	}
	report.Step("making the machine's %s", d.what)
	// Taken first: what changes while the disk is made makes it outdated.
	key, err := d.key()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(d.keyFile()); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(d.path), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	staged, image := filepath.Join(work, "root"), filepath.Join(work, "image")
	for at, src := range d.content {
		if err := stage(filepath.Join(staged, at), src); err != nil {
			return err
		}
	}
	if err := d.make(ctx, image, staged); err != nil {
		return err
	}
	if err := os.Rename(image, d.path); err != nil {
		return err
	}
	return renameio.WriteFile(d.keyFile(), []byte(key), 0o600)
}

// makeSystemDisk makes the read-only root of the machine. It is not compressed:
// the emulated CPU would pay for that at every start.
func makeSystemDisk(ctx context.Context, dst, staged string) error {
	for _, dir := range []string{"dev", "etc", "proc", "root", "run", "sys", "tmp", "var/lib/emberd"} {
		if err := os.MkdirAll(filepath.Join(staged, dir), 0o755); err != nil { //nolint:gosec // directories of a whole system
			return err
		}
	}
	_, err := command.Run(ctx, mksquashfs, staged, dst, "-all-root", "-no-xattrs",
		"-noI", "-noD", "-noF", "-noX", "-noappend", "-quiet", "-no-progress")
	return err
}

// makeDataDisk makes the disk that is mounted on emberd's data directory.
func makeDataDisk(ctx context.Context, dst, staged string) error {
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(dataDiskSize), f.Close()); err != nil {
		return err
	}
	// A small journal is enough for one writer, and keeps the file small.
	_, err = command.Run(ctx, mke2fs(), "-q", "-t", "ext4", "-m", "0", "-J", "size=16",
		"-E", "root_owner=0:0,nodiscard", "-d", staged, dst)
	return err
}

// key sums up what the disk is made from.
func (d disk) key() (string, error) {
	sum := sha256.New()
	for _, at := range slices.Sorted(maps.Keys(d.content)) {
		_, _ = fmt.Fprintf(sum, "%s\n", at)
		root := d.content[at]
		err := walk(root, func(path string, e fs.DirEntry) error {
			if e.IsDir() {
				return nil
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return d.sumFile(sum, path, rel)
		})
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x\n", sum.Sum(nil)), nil
}

func (d disk) sumFile(sum hash.Hash, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(sum, "%q %o %d\n", name, info.Mode(), info.Size())
	if d.byContent {
		_, err = io.Copy(sum, f)
		return err
	}
	_, _ = fmt.Fprintf(sum, "%d\n", info.ModTime().UnixNano())
	return nil
}

// walk calls f for everything in root but hidden files, which are locks and
// things half made.
func walk(root string, f func(path string, d fs.DirEntry) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != root && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return f(path, d)
	})
}

// stage puts the file or directory src at dst, as hard links where the
// filesystem and the owner allow that.
func stage(dst, src string) error {
	return walk(src, func(path string, d fs.DirEntry) error {
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dst, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o755) //nolint:gosec // as in what is copied
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is neither a file nor a directory", path)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // as in what is copied
			return err
		}
		if os.Link(path, to) == nil {
			return nil
		}
		return copyFile(to, path)
	})
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
