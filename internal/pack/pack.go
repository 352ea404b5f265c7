// Package pack knows the language packs: read-only root filesystems, each with
// the interpreter that runs a client's code in it.
//
// A pack starts as a definition, which is data ([Definition]); [Build] makes it
// an image and a [Manifest]; a [Registry] is what a daemon finds built when it
// starts. The one rule is that nothing half-made is ever seen: an image and its
// manifest appear under their names together, complete and checked, or not at
// all. The package boots nothing and knows nothing of Firecracker.
package pack

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/regular"
)

// Pack is a built language pack.
type Pack struct {
	Name string
	// RootfsPath is the squashfs image on the host. It is opened read-only and
	// shared by every sandbox of the pack.
	RootfsPath string
	// Interpreter runs code inside the image: a path, or a name to be found on
	// the guest's PATH.
	Interpreter string
	// CodeFlag precedes code on the interpreter's command line, and FileFlag, if
	// there is one, a file of code that has no name.
	CodeFlag, FileFlag string
	// Warm is how the interpreter is started ahead of code; nil if it cannot be.
	Warm *WarmUp
	// Digest is the image's SHA-256 in hex, as its manifest states it.
	Digest string
}

// BootArgs returns what the guest's init learns of the pack from its kernel
// command line.
func (p Pack) BootArgs() string {
	args := "emberd.interpreter=" + p.Interpreter
	if p.CodeFlag != "" {
		args += " emberd.code_flag=" + p.CodeFlag
	}
	if p.FileFlag != "" {
		args += " emberd.file_flag=" + p.FileFlag
	}
	if p.Warm != nil {
		args += " emberd.warm=" + p.Warm.Kind + "," + strings.Join(p.Warm.Argv, ",")
		if len(p.Warm.Watch) > 0 {
			args += " emberd.watch=" + strings.Join(p.Warm.Watch, ",")
		}
	}
	return args
}

// Registry is a fixed set of packs. It may be used by any number of goroutines.
type Registry struct {
	packs map[string]Pack
}

// NewRegistry returns the registry of exactly these packs, unchecked.
func NewRegistry(packs ...Pack) *Registry {
	r := &Registry{packs: make(map[string]Pack, len(packs))}
	for _, p := range packs {
		r.packs[p.Name] = p
	}
	return r
}

// Load returns the packs that are built under data. Each image is checked to be
// the complete squashfs file that its manifest describes, though not hashed,
// which [Verify] does. A pack that is not whole is an error that names the pack
// and the file, and so is a data directory without packs.
func Load(data paths.Data) (*Registry, error) {
	names, err := built(data)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no language pack in %s: build them with emberctl setup", data.Packs())
	}
	packs := make([]Pack, 0, len(names))
	for _, name := range names {
		p, err := load(data, name)
		if err != nil {
			return nil, err
		}
		packs = append(packs, p)
	}
	return NewRegistry(packs...), nil
}

// Get returns the pack called name, or [sandbox.ErrUnknownPack].
func (r *Registry) Get(name string) (Pack, error) {
	p, ok := r.packs[name]
	if !ok {
		return Pack{}, sandbox.UnknownPack(name)
	}
	return p, nil
}

// Names returns the names of all packs, sorted.
func (r *Registry) Names() []string { return slices.Sorted(maps.Keys(r.packs)) }

// built lists the names under the pack directory. A name that begins with a dot
// is a build that goes on or was killed.
func built(data paths.Data) ([]string, error) {
	entries, err := os.ReadDir(data.Packs())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list packs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func load(data paths.Data, name string) (Pack, error) {
	m, err := ReadManifest(data, name)
	if err != nil {
		return Pack{}, err
	}
	p := Pack{
		Name:        name,
		RootfsPath:  data.PackRootfs(name),
		Interpreter: m.Interpreter,
		CodeFlag:    cmp.Or(m.CodeFlag, defaultCodeFlag),
		FileFlag:    m.FileFlag,
		Warm:        m.Warm,
		Digest:      m.Digest,
	}
	if err := checkImage(p.RootfsPath, m.Size); err != nil {
		return Pack{}, fmt.Errorf("pack %s: %w; rebuild it with emberctl pack build %s", name, err, name)
	}
	return p, nil
}

// The parts of a squashfs 4.0 superblock that tell a whole image from a file
// that was cut short.
const (
	superblockLen   = 96
	magicOffset     = 0
	bytesUsedOffset = 40
	squashfsMagic   = 0x73717368
)

// checkImage reports what is wrong with the image at path, which should be size
// bytes of squashfs.
func checkImage(path string, size int64) error {
	f, err := regular.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rootfs image is missing: %w", err)
	}
	if err != nil {
		return fmt.Errorf("rootfs image: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("rootfs image: %w", err)
	}
	if info.Size() != size {
		return fmt.Errorf("rootfs image %s has %d bytes, its manifest says %d", path, info.Size(), size)
	}
	var super [superblockLen]byte
	if _, err := io.ReadFull(f, super[:]); err != nil {
		return fmt.Errorf("rootfs image %s: read superblock: %w", path, err)
	}
	if binary.LittleEndian.Uint32(super[magicOffset:]) != squashfsMagic {
		return fmt.Errorf("rootfs image %s is not squashfs", path)
	}
	if used := binary.LittleEndian.Uint64(super[bytesUsedOffset:]); used > uint64(size) {
		return fmt.Errorf("rootfs image %s is cut short: %d bytes of %d", path, size, used)
	}
	return nil
}
