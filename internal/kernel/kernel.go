// Package kernel turns a distribution's kernel into what is booted: the bzImage
// for QEMU, the ELF for Firecracker, the few modules that either needs, and the
// initramfs that carries them with emberd-init.
//
// The one idea is that a kernel is whatever has the drivers that are asked for,
// as modules or built in. So the machine boots the distribution's own kernel,
// unpacked and unchanged, and sandboxes boot the same or one that was built from
// its source with a configuration of emberd's. Everything written is a function
// of its inputs alone.
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

// Files says where a kernel is installed.
type Files struct {
	// Image is the kernel as it is booted.
	Image string
	// Modules becomes the module directory, laid out as in
	// /lib/modules/VERSION. It is replaced as a whole.
	Modules string
}

// InstallGuest installs the kernel of an unpacked kernel package (the directory
// that `dpkg-deb -x` made) for sandboxes: the ELF that is packed in its bzImage,
// and of its modules those of [GuestModules] and what they depend on.
func InstallGuest(tree string, to Files) error {
	return installPackage(tree, to, GuestModules(), ExtractVmlinux)
}

// InstallMachine installs the kernel of an unpacked kernel package for the
// machine: its bzImage, and of its modules those of [MachineModules] and what
// they depend on.
func InstallMachine(tree string, to Files) error {
	asItIs := func(image []byte) ([]byte, error) { return image, nil }
	return installPackage(tree, to, MachineModules(), asItIs)
}

func installPackage(tree string, to Files, wanted []string, unpack func(bzImage []byte) ([]byte, error)) error {
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
	if image, err = unpack(image); err != nil {
		return fmt.Errorf("extract kernel of %s: %w", vmlinuz, err)
	}
	if err := installModules(modules, to.Modules, wanted); err != nil {
		return fmt.Errorf("install modules of %s: %w", modules, err)
	}
	return writeFile(to.Image, image)
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
// the wanted modules, and what they depend on.
func installModules(src, dst string, wanted []string) error {
	ix, err := readIndex(src)
	if err != nil {
		return err
	}
	files, err := ix.loadOrder(wanted)
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
