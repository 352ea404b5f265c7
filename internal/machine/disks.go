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

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/progress"
	"github.com/google/renameio/v2"
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
	make    func(ctx context.Context, dst, staged string) error
}

// buildDisks brings the machine's disks and its initramfs up to date. The
// caller holds the lock.
func (m Machine) buildDisks(ctx context.Context, data paths.Data, bin string, report progress.Func) error {
	system := disk{
		path:    m.systemDisk(),
		what:    "system disk",
		content: make(map[string]string),
		make:    makeSystemDisk,
	}
	for _, name := range binaries() {
		system.content["bin/"+name] = filepath.Join(bin, name)
	}
	content := disk{
		path: m.dataDisk(),
		what: "data disk",
		content: map[string]string{
			"firecracker/firecracker": data.Firecracker(),
			"firecracker/jailer":      data.Jailer(),
			"kernel/vmlinux":          data.Vmlinux(),
			"kernel/modules":          data.Modules(),
			"packs":                   data.Packs(),
		},
		make: makeDataDisk,
	}
	for _, d := range []disk{system, content} {
		if err := d.refresh(ctx, report); err != nil {
			return fmt.Errorf("make %s of machine %s: %w", d.what, m.Name, err)
		}
	}
	return kernel.BuildInitramfs(m.initramfs(), filepath.Join(bin, "emberd-init"), data.Modules(), kernel.MachineModules())
}

// refresh makes the disk if it is not there or was made from something else.
func (d disk) refresh(ctx context.Context, report progress.Func) error {
	key, err := contentKey(d.content)
	if err != nil {
		return err
	}
	keyFile := d.path + ".key"
	have, err := os.ReadFile(keyFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(d.path); err == nil && string(have) == key {
		return nil
	}
	report.Step("making the machine's %s", d.what)
	// Without its key a disk counts as not there, whatever happens from here on.
	if err := os.RemoveAll(keyFile); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(d.path), ".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
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
	return renameio.WriteFile(keyFile, []byte(key), 0o600)
}

// makeSystemDisk makes the read-only root of the machine. It is not compressed:
// the emulated CPU would pay for that at every start.
func makeSystemDisk(ctx context.Context, dst, staged string) error {
	for _, dir := range []string{"dev", "etc", "proc", "root", "run", "sys", "tmp", "var/lib/emberd"} {
		if err := os.MkdirAll(filepath.Join(staged, dir), 0o755); err != nil {
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

// contentKey sums up what the files of content are made of: names, modes, sizes
// and times of change, which is what a build tool would go by, too.
func contentKey(content map[string]string) (string, error) {
	sum := sha256.New()
	for _, at := range slices.Sorted(maps.Keys(content)) {
		fmt.Fprintf(sum, "%s\n", at)
		if err := sumTree(sum, content[at]); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x\n", sum.Sum(nil)), nil
}

func sumTree(sum hash.Hash, root string) error {
	return walk(root, func(path string, d fs.DirEntry) error {
		if d.IsDir() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%q %o %d %d\n", rel, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return nil
	})
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
			return os.MkdirAll(to, 0o755)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is neither a file nor a directory", path)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
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
	defer in.Close()
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
