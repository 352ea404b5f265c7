package proc

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// files are the descriptors of a program that is being started: the child's
// ends, in the order of their numbers, and the ends that stay here.
type files struct {
	child, own []*os.File
}

// standard makes the three standard streams and returns the ends that stay.
func (f *files) standard() (stdin, stdout, stderr *os.File, err error) {
	stdin, err = f.pipe(true)
	if err == nil {
		stdout, err = f.pipe(false)
	}
	if err == nil {
		stderr, err = f.pipe(false)
	}
	if err != nil {
		_ = f.closeOwnEnds()
		return nil, nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return stdin, stdout, stderr, nil
}

// pipe makes the child's next descriptor, which the child reads if childReads,
// and returns the other end.
func (f *files) pipe(childReads bool) (*os.File, error) {
	child, own, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if !childReads {
		child, own = own, child
	}
	f.child, f.own = append(f.child, child), append(f.own, own)
	return own, nil
}

// script makes code the child's next descriptor.
func (f *files) script(code []byte) error {
	fd, err := unix.MemfdCreate("code", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make script file: %w", err)
	}
	file := os.NewFile(uintptr(fd), "code")
	f.child = append(f.child, file)
	if _, err := file.Write(code); err != nil {
		return fmt.Errorf("write script file: %w", err)
	}
	return nil
}

func (f *files) closeChildEnds() {
	for _, file := range f.child {
		_ = file.Close()
	}
}

// closeOwnEnds always returns nil: closing a pipe cannot lose anything.
func (f *files) closeOwnEnds() error {
	for _, file := range f.own {
		_ = file.Close()
	}
	return nil
}
