package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What only system calls tell.

// statfs asks the nearest directory at or above path that exists.
func statfs(path string) (s unix.Statfs_t, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return s, err
	}
	for {
		err := unix.Statfs(path, &s)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return s, fmt.Errorf("statfs %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// free returns the bytes that are free for path.
func free(path string) (uint64, error) {
	s, err := statfs(path)
	return s.Bavail * uint64(s.Bsize), err
}

// tmpfs tells whether path is in memory.
func tmpfs(path string) (bool, error) {
	s, err := statfs(path)
	return s.Type == unix.TMPFS_MAGIC || s.Type == unix.RAMFS_MAGIC, err
}

// fileLimit is how many files this process may come to have open.
func fileLimit() (uint64, error) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return limit.Max, err
}

// clockSynced tells whether something keeps the kernel's clock right.
func clockSynced() (bool, error) {
	var t unix.Timex
	_, err := unix.Adjtimex(&t)
	return t.Status&unix.STA_UNSYNC == 0, err
}
