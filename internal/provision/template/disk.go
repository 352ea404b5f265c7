package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/digest"
	"github.com/emberd/emberd/internal/x/regular"
)

// manifestFile describes the template it lies beside, and partialSuffix ends
// the name of a directory in which one is being made.
const (
	manifestFile  = "manifest.json"
	partialSuffix = ".partial"
	maxManifest   = 1 << 20
)

// manifest is what a template was made from and what its files hold.
type manifest struct {
	Pack      string    `json:"pack"`
	Key       Key       `json:"key"`
	CreatedAt time.Time `json:"created_at"`
	// State is the SHA-256 of the state file, Memory the digest of the memory
	// file's pages, in hex.
	State  string `json:"state"`
	Memory string `json:"memory"`
	// Armed are the pages that a VM has written to when it is armed, Rehearsed
	// when it has run its first program as well. There are none on a host on which
	// emberd may not look into its VMMs.
	Armed     firecracker.Pages `json:"armed,omitempty"`
	Rehearsed firecracker.Pages `json:"rehearsed,omitempty"`
}

// template is one whose files were verified. It is a value that nobody changes.
type template struct {
	manifest
	snapshot firecracker.Snapshot
	// files are what the files were when they were verified.
	files [2]identity
}

// slot is where the template belongs.
func (t *template) slot() slotKey { return slotKey{t.Pack, t.Key.Size, t.Key.Network} }

// identity tells a file that was changed or replaced from the one that it was.
type identity struct {
	dev, inode uint64
	size       int64
	changed    time.Time
}

func identify(path string) (identity, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return identity{}, err
	}
	id := identity{size: info.Size(), changed: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.dev, id.inode = st.Dev, st.Ino
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o222 != 0 {
		return identity{}, fmt.Errorf("%s is %v, want a file that nobody can write", path, info.Mode())
	}
	return id, nil
}

// unchanged returns an error if the files are not those that were verified. To
// hash them again would take longer than a boot.
func (t *template) unchanged() error {
	for i, path := range []string{t.snapshot.State, t.snapshot.Memory} {
		now, err := identify(path)
		if err != nil {
			return err
		}
		if now != t.files[i] {
			return fmt.Errorf("%s is not the file that was verified", path)
		}
	}
	return nil
}

// size is how much of the disk the template takes, and how long its files are.
func (t *template) size() (real, apparent int64) {
	for _, path := range []string{t.snapshot.State, t.snapshot.Memory} {
		if info, err := os.Lstat(path); err == nil {
			apparent += info.Size()
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				real += st.Blocks * 512
			}
		}
	}
	return real, apparent
}

// readManifest reads the manifest of the template in dir.
func readManifest(dir string) (manifest, error) {
	raw, err := regular.ReadFile(filepath.Join(dir, manifestFile), maxManifest)
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return manifest{}, fmt.Errorf("%s: %w", manifestFile, err)
	}
	return m, nil
}

// look returns the template in dir that m describes, without a look into its
// files. rootfs is the image of its key.
func look(dir string, m manifest, rootfs string) (*template, error) {
	t := &template{manifest: m, snapshot: firecracker.SnapshotIn(dir, m.Key.Size, rootfs)}
	for i, path := range []string{t.snapshot.State, t.snapshot.Memory} {
		var err error
		if t.files[i], err = identify(path); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// load verifies the template in dir, which has to be of that key: every byte of
// its files.
func load(ctx context.Context, dir string, key Key, rootfs string) (*template, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	if m.Key != key {
		return nil, fmt.Errorf("it was made for %+v, not for %+v", m.Key, key)
	}
	for _, pages := range []firecracker.Pages{m.Armed, m.Rehearsed} {
		if err := pages.Check(int64(key.Size.MemoryMiB) << 20); err != nil {
			return nil, fmt.Errorf("%s: %w", manifestFile, err)
		}
	}
	// A change while a file is being hashed is found by the look before the first
	// restore.
	t, err := look(dir, m, rootfs)
	if err != nil {
		return nil, err
	}
	state, err := digest.File(t.snapshot.State)
	if err != nil {
		return nil, err
	}
	if state != m.State {
		return nil, fmt.Errorf("its state has the digest %s, its manifest says %s", state, m.State)
	}
	memory, err := digestPages(ctx, t.snapshot.Memory)
	if err != nil {
		return nil, err
	}
	if memory != m.Memory {
		return nil, fmt.Errorf("its memory has the digest %s, its manifest says %s", memory, m.Memory)
	}
	return t, nil
}

// seal has what a VMM has left in dir be a template's files, with holes for the
// empty pages of its memory, and describes them.
func seal(ctx context.Context, dir, pack string, key Key) (m manifest, err error) {
	snap := firecracker.SnapshotIn(dir, key.Size, "")
	m = manifest{Pack: pack, Key: key, CreatedAt: time.Now().UTC()}
	if m.State, err = digest.File(snap.State); err != nil {
		return m, err
	}
	if err := os.Chmod(snap.Memory, 0o600); err != nil {
		return m, err
	}
	if m.Memory, err = punch(ctx, snap.Memory); err != nil {
		return m, err
	}
	for _, path := range []string{snap.State, snap.Memory} {
		if err := os.Chmod(path, 0o444); err != nil { //nolint:gosec // each VMM has a user of its own, and reads it
			return m, err
		}
	}
	return m, nil
}

// write writes the manifest of the template in dir.
func (m manifest) write(dir string) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), append(raw, '\n'), 0o600)
}

// sweep removes what is no template of this host's: what was being made when a
// daemon was killed, and what no VM can be restored from any more.
func (s *Templates) sweep() error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(s.cfg.Dir, e.Name())
		why := s.useless(dir)
		if why == nil {
			continue
		}
		s.cfg.Log.Info("removing a template that is of no use any more", "template", e.Name(), "reason", why)
		errs = append(errs, remove(dir))
	}
	return errors.Join(errs...)
}

// useless returns why no VM of this daemon's can be restored from what is in dir.
func (s *Templates) useless(dir string) error {
	if strings.HasSuffix(dir, partialSuffix) {
		return errors.New("it is not finished")
	}
	m, err := readManifest(dir)
	if err != nil {
		return err
	}
	p, err := s.cfg.Packs.Get(m.Pack)
	if errors.Is(err, sandbox.ErrUnknownPack) {
		return err
	}
	key, err := s.key(Kind{p, m.Key.Size, m.Key.Network})
	if err != nil {
		return err
	}
	if m.Key != key || filepath.Base(dir) != key.ID() {
		return fmt.Errorf("it was made for %+v, not for %+v", m.Key, key)
	}
	return nil
}

// remove removes the template in dir.
func remove(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove template: %w", err)
	}
	return nil
}
