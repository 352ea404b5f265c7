// Package lockfile keeps two processes from doing the same thing at once.
//
// The lock belongs to the open file, so the kernel lets go of it when the
// process that holds it ends, however it ends. The file itself stays.
package lockfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrHeld is returned while another process holds the lock.
var ErrHeld = errors.New("held by another process")

// Take takes the lock at path without waiting, and makes the file and the
// directories above it where they are missing. The caller calls release.
func Take(path string) (release func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // what else is there may be for everybody
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrHeld
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}
