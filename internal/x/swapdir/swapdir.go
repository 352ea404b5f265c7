// Package swapdir replaces a directory by a new one in a single step, so that
// whoever reads it sees all of the old files or all of the new ones.
package swapdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Publish makes the directory from appear as to, on the same filesystem. The
// content is on the disk before it appears. If there is a directory to already,
// the two are exchanged: the old one is then called from, and is the caller's
// to delete.
func Publish(from, to string) error {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		return flush(path)
	})
	if err != nil {
		return fmt.Errorf("publish %s: %w", to, err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(from, to)
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", to, err)
	}
	return flush(filepath.Dir(to))
}

func flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
