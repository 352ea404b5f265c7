package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pageSize is the unit in which memory is looked at.
const pageSize = 4096

// chunkSize is how much of it is read at a time.
const chunkSize = 256 * pageSize

// pages calls f with each page of the file that is not empty, with its offset,
// in order, and hole with each run of pages that are empty and yet take room.
// What is a hole already is skipped.
func pages(ctx context.Context, file *os.File, size int64, f func(off int64, page []byte), hole func(off, length int64) error) error {
	var empty [pageSize]byte
	buf := make([]byte, chunkSize)
	run := int64(0)
	endRun := func(end int64) error {
		length := run
		if run = 0; length == 0 {
			return nil
		}
		return hole(end-length, length)
	}
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(file.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		if err != nil {
			return &os.PathError{Op: "seek", Path: file.Name(), Err: err}
		}
		off = max(off, data-data%pageSize)
		n := min(chunkSize, size-off)
		if _, err := file.ReadAt(buf[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		for at := int64(0); at < n; at += pageSize {
			page := buf[at:min(at+pageSize, n)]
			if bytes.Equal(page, empty[:len(page)]) {
				run += int64(len(page))
				continue
			}
			if err := endRun(off + at); err != nil {
				return err
			}
			f(off+at, page)
		}
		if err := endRun(off + n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// digestPages is a SHA-256, in hex, of a file that is mostly empty: of its size
// and of the pages that are not. It does not depend on what of the rest is a
// hole.
func digestPages(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return hashPages(ctx, f, func(int64, int64) error { return nil })
}

// punch makes holes of the empty pages of a file and returns its digest, as
// [digestPages] does.
func punch(ctx context.Context, path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	digest, err := hashPages(ctx, f, func(off, length int64) error {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // the filesystem has no holes; the file takes more room
		}
		if err != nil {
			return &os.PathError{Op: "punch hole", Path: path, Err: err}
		}
		return nil
	})
	return digest, errors.Join(err, f.Close())
}

func hashPages(ctx context.Context, f *os.File, hole func(off, length int64) error) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	var number [8]byte
	write := func(n int64) {
		binary.BigEndian.PutUint64(number[:], uint64(n))
		h.Write(number[:])
	}
	write(info.Size())
	err = pages(ctx, f, info.Size(), func(off int64, page []byte) {
		write(off)
		h.Write(page)
	}, hole)
	if err != nil {
		return "", fmt.Errorf("hash %s: %w", f.Name(), err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
