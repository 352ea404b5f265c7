package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// builtinList is the file of a module directory that names the modules which
// are compiled into the kernel.
const builtinList = "modules.builtin"

// GuestModules lists the modules a sandbox's kernel is given. A kernel that has
// them built in is as good.
func GuestModules() []string {
	return []string{
		"virtio_mmio",         // Firecracker's only transport
		"virtio_blk",          // the rootfs
		"squashfs", "overlay", // what / is made of
		"vmw_vsock_virtio_transport", // the agent's connection
		"virtio_rng",                 // entropy from the host
		"virtio_net",                 // the interface of a sandbox with egress
	}
}

// MachineModules lists the modules the machine's kernel is given.
func MachineModules() []string {
	return append([]string{
		"virtio_pci",          // QEMU's transport
		"virtio_blk",          // system and data disk
		"squashfs", "overlay", // what / is made of
		"virtio_console", // the agent's connection
		"kvm_amd",        // what the machine is for
		"nft_objref",     // a part of nf_tables in later kernels
	}, NetworkModules()...)
}

// NetworkModules lists the modules that a host needs to give microVMs network
// interfaces.
func NetworkModules() []string {
	return []string{
		"tun", // the interfaces
		// What their rules are made of.
		"nf_tables", "nft_tproxy", "nft_socket", "nft_reject_inet", "nft_quota",
	}
}

// index knows the modules of one module directory by their kernel names.
type index struct {
	dir     string
	files   map[string]string // kernel name → path relative to dir
	builtin map[string]bool
}

// readIndex walks a module directory. It does not use modules.dep, which is
// made when a package is installed and is not part of it.
func readIndex(dir string) (*index, error) {
	ix := &index{dir: dir, files: make(map[string]string), builtin: make(map[string]bool)}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".ko" {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := moduleName(path)
		if other, ok := ix.files[name]; ok {
			return fmt.Errorf("module %s is there twice: %s and %s", name, other, rel)
		}
		ix.files[name] = rel
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index modules: %w", err)
	}
	list, err := os.ReadFile(filepath.Join(dir, builtinList))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("index modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		ix.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return ix, nil
}

// moduleName is the kernel's name for a module file: it uses underscores where
// files may have dashes.
func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// loadOrder returns the files to load for the named modules, each after what
// it depends on and none twice. Built-in ones need no file.
func (ix *index) loadOrder(names []string) ([]string, error) {
	var order []string
	state := make(map[string]int) // 1: being resolved, 2: in order
	var visit func(name, wantedBy string) error
	visit = func(name, wantedBy string) error {
		name = moduleName(name)
		switch state[name] {
		case 2:
			return nil
		case 1:
			return fmt.Errorf("module %s depends on itself through %s", name, wantedBy)
		}
		file, ok := ix.files[name]
		if !ok {
			if ix.builtin[name] {
				return nil
			}
			return fmt.Errorf("module %s, needed by %s, is not in %s", name, wantedBy, ix.dir)
		}
		state[name] = 1
		deps, err := depends(filepath.Join(ix.dir, file))
		if err != nil {
			return err
		}
		for _, dep := range deps {
			if err := visit(dep, name); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, file)
		return nil
	}
	for _, name := range names {
		if err := visit(name, "emberd"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// depends reads a module file's own list of what must be loaded before it.
func depends(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("read module %s: no .modinfo section", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok {
			return strings.FieldsFunc(list, func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
