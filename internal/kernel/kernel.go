// Package kernel turns a distribution's kernel package into what is booted:
// the bzImage for QEMU, the ELF inside it for Firecracker, the few modules
// that either needs, and the initramfs that carries them with emberd-init.
//
// The one idea is that a stock kernel is good enough: it is unpacked, never
// built or changed. Everything written is a function of its inputs alone, and
// is renamed into place when it is complete.
//
// The package fetches nothing and boots nothing.
package kernel

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// Files says where [Install] puts the parts of a kernel.
type Files struct {
	// Vmlinuz is the bzImage, Vmlinux the ELF that is packed in it.
	Vmlinuz, Vmlinux string
	// Modules becomes the module directory, laid out as in
	// /lib/modules/VERSION. It is replaced as a whole.
	Modules string
}

// Install copies the kernel of an unpacked kernel package (the directory that
// `dpkg-deb -x` made) to the places named by to. Of the modules it keeps those
// of [GuestModules] and [MachineModules] and what they depend on.
func Install(tree string, to Files) error {
	vmlinuz, err := one(filepath.Join(tree, "boot"), "vmlinuz-")
	if err != nil {
		return err
	}
	modules, err := one(filepath.Join(tree, "lib", "modules"), "")
	if err != nil {
		return err
	}
	image, err := os.ReadFile(vmlinuz)
	if err != nil {
		return fmt.Errorf("read kernel: %w", err)
	}
	elf, err := ExtractVmlinux(image)
	if err != nil {
		return fmt.Errorf("extract vmlinux of %s: %w", vmlinuz, err)
	}
	if err := installModules(modules, to.Modules); err != nil {
		return fmt.Errorf("install modules of %s: %w", modules, err)
	}
	if err := writeFile(to.Vmlinuz, image); err != nil {
		return err
	}
	return writeFile(to.Vmlinux, elf)
}

// one returns the only entry of dir whose name begins with prefix: a package
// that holds two kernels leaves open which one is meant.
func one(dir, prefix string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("look into kernel package: %w", err)
	}
	var found []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			found = append(found, e.Name())
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("look into kernel package: want one %s* in %s, have %q", prefix, dir, found)
	}
	return filepath.Join(dir, found[0]), nil
}

// installModules makes dst a copy of the module directory src that holds only
// what this package may be asked to load.
func installModules(src, dst string) error {
	ix, err := readIndex(src)
	if err != nil {
		return err
	}
	files, err := ix.loadOrder(append(GuestModules(), MachineModules()...))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil { //nolint:gosec // the machine reads it, as an ordinary user
		return err
	}
	partial, err := os.MkdirTemp(filepath.Dir(dst), ".modules-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(partial) }()
	if err := os.Chmod(partial, 0o755); err != nil { //nolint:gosec // as above
		return err
	}
	if _, err := os.Stat(filepath.Join(src, builtinList)); err == nil {
		files = append(files, builtinList)
	}
	for _, name := range files {
		if err := copyFile(filepath.Join(partial, name), filepath.Join(src, name)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dst); err != nil {
		return err
	}
	return os.Rename(partial, dst)
}

func copyFile(dst, src string) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil { //nolint:gosec // the machine reads it, as an ordinary user
		return err
	}
	return os.WriteFile(dst, data, 0o644) //nolint:gosec // as above
}

// writeFile replaces path as a whole.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // as above
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := renameio.WriteFile(path, data, fs.FileMode(0o644)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
