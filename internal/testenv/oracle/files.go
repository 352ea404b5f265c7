package oracle

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// takeDirs lists what is below the directories, and adds up the bytes.
func (s *Snapshot) takeDirs() error {
	for _, dir := range s.cfg.Dirs {
		var size int64
		err := walk(dir, func(path string, info fs.FileInfo) error {
			if path != dir {
				s.items["file "+path] = true
			}
			if info.Mode().IsRegular() {
				size += info.Size()
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.counts["bytes in "+dir] = size
	}
	return nil
}

// takeGuarded describes every file of the guarded trees: kind, mode, owner, and
// what it holds.
func (s *Snapshot) takeGuarded() error {
	for _, tree := range s.cfg.Guarded {
		err := walk(tree, func(path string, info fs.FileInfo) error {
			content, err := digest(path, info)
			if err != nil {
				return err
			}
			owner := ""
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				owner = fmt.Sprintf("%d:%d", st.Uid, st.Gid)
			}
			s.guarded[path] = fmt.Sprintf("%v %s %s", info.Mode(), owner, content)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// digest is what a file holds: a hash, a link's target, or nothing for what
// must not be opened to look at it.
func digest(path string, info fs.FileInfo) (string, error) {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return os.Readlink(path)
	case !info.Mode().IsRegular():
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("sha256 %x", sum.Sum(nil)), nil
}

// walk calls visit for each file below root, which need not exist. Links are
// not followed; what is removed meanwhile is passed over.
func walk(root string, visit func(path string, info fs.FileInfo) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				err = visit(path, info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}
