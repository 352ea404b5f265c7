package pack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/emberd/emberd/internal/debstrap"
	"github.com/emberd/emberd/internal/x/command"
)

// epoch is the time of every file in an image, in seconds since 1970: the first
// of January 2025. Not zero, because zip, and so Python's wheels, cannot hold a
// date before 1980.
const epoch = 1735689600

// unpack fills tree with the files of def's packages, and of what they depend
// on, and returns their versions.
func unpack(ctx context.Context, def Definition, tree, tmp string) ([]Package, error) {
	archives, err := debstrap.Extract(ctx, debstrap.Request{
		Suite: def.Suite, Packages: def.Packages, Tree: tree, Tmp: tmp, Epoch: epoch,
	})
	if err != nil {
		return nil, err
	}
	return contents(os.DirFS(archives))
}

// contents reads the packages' names and versions off the names of their files:
// NAME_VERSION_ARCHITECTURE.deb, where the version is percent-encoded.
func contents(dir fs.FS) ([]Package, error) {
	files, err := fs.Glob(dir, "*.deb")
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	if len(files) == 0 {
		return nil, errors.New("mmdebstrap left no packages")
	}
	var list []Package
	for _, file := range files {
		parts := strings.Split(strings.TrimSuffix(file, ".deb"), "_")
		if len(parts) != 3 {
			return nil, fmt.Errorf("the package file %q has no version in its name", file)
		}
		version, err := url.PathUnescape(parts[1])
		if err != nil {
			return nil, fmt.Errorf("the package file %q: %w", file, err)
		}
		list = append(list, Package{Name: parts[0], Version: version})
	}
	slices.SortFunc(list, func(a, b Package) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// arrange makes the unpacked tree what def wants. Paths of the definition are
// resolved inside the tree: a link of a package cannot lead to this host.
func arrange(ctx context.Context, def Definition, tree string) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, name := range slices.Sorted(maps.Keys(def.Links)) {
		if err := replace(root, name, func() error { return root.Symlink(def.Links[name], name) }); err != nil {
			return fmt.Errorf("make link %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(def.Files)) {
		content := strings.TrimPrefix(def.Files[name], "\n")
		if err := replace(root, name, func() error { return root.WriteFile(name, []byte(content), 0o644) }); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	for _, c := range def.Commands {
		if err := runInside(ctx, tree, c.Argv); err != nil {
			return err
		}
	}
	for _, r := range def.Remove {
		for _, pattern := range r.Paths {
			if err := removeAll(root, pattern); err != nil {
				return err
			}
		}
	}
	for _, dir := range def.Directories {
		if err := makeDirectory(root, dir); err != nil {
			return fmt.Errorf("make directory %s: %w", dir.Path, err)
		}
	}
	return nil
}

// replace deletes name, makes the directory it is in, and calls create.
func replace(root *os.Root, name string, create func() error) error {
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return create()
}

func removeAll(root *os.Root, pattern string) error {
	matches, err := fs.Glob(root.FS(), pattern)
	if err != nil {
		return fmt.Errorf("remove %s: %w", pattern, err)
	}
	for _, name := range matches {
		if err := root.RemoveAll(name); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

func makeDirectory(root *os.Root, dir Directory) error {
	if err := root.MkdirAll(dir.Path, 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(dir.Mode & 0o777)
	if mode == 0 {
		mode = 0o755
	}
	if dir.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	return root.Chmod(dir.Path, mode)
}

// runInside runs a program of the image, in the image. It sees nothing of this
// host's environment, which would make the result depend on it.
func runInside(ctx context.Context, tree string, argv []string) error {
	args := slices.Concat([]string{
		"-i",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LC_ALL=C.UTF-8",
		"PYTHONDONTWRITEBYTECODE=1",
		"PYTHONHASHSEED=0",
		"SOURCE_DATE_EPOCH=" + strconv.Itoa(epoch),
		"chroot", tree,
	}, argv)
	if _, err := command.Run(ctx, "env", args...); err != nil {
		return fmt.Errorf("run %s in the image: %w", argv[0], err)
	}
	return nil
}

// compressionLevel is where zstd stops being cheap: level 19 takes 17 times as
// long and makes the python image 7 % smaller.
const compressionLevel = 9

// compress writes the image. Everything that could tell one run from another is
// fixed: times, owners, order.
func compress(ctx context.Context, tree, image string) error {
	_, err := command.Run(ctx, "mksquashfs", tree, image,
		"-noappend", "-quiet", "-no-progress",
		"-comp", "zstd", "-Xcompression-level", strconv.Itoa(compressionLevel),
		"-all-root", "-no-xattrs", "-no-exports",
		"-mkfs-time", strconv.Itoa(epoch), "-all-time", strconv.Itoa(epoch))
	if err != nil {
		return err
	}
	return os.Chmod(image, 0o444) //nolint:gosec // the machine reads it, as an ordinary user
}
