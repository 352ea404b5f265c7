// Package regular opens files that have to be files. A device, a FIFO or a link
// in the place of one is refused before it is opened: opening a device can do
// things, and opening a FIFO can wait for ever.
package regular

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotRegular is matched by the error about what is no regular file.
var ErrNotRegular = errors.New("not a regular file")

// Open opens the regular file at path for reading. A link is refused, even one
// to a regular file.
func Open(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, kindError(path, info)
	}
	// It may be another file by now.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err = f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = kindError(path, info)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ReadFile reads the regular file at path, which may have at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, nil
}

func kindError(path string, info fs.FileInfo) error {
	return fmt.Errorf("%s is %w (%v)", path, ErrNotRegular, info.Mode())
}
