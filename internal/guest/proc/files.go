package proc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/guest/reaper"
)

// Slot is where one program goes: its control group, its three standard streams
// and this side's ends of them. It can be made ahead of the program.
type Slot struct {
	runner         *Runner
	group          group
	files          []*os.File // the program's ends, in the order of their numbers
	stdin          *os.File
	stdout, stderr *output
}

// NewSlot makes a slot. The caller discards it, or has a program in it that it
// attends.
func (r *Runner) NewSlot() (*Slot, error) {
	group, err := r.groups.create()
	if err != nil {
		return nil, err
	}
	s := &Slot{runner: r, group: group, stdout: &output{}, stderr: &output{}}
	s.stdin, err = s.pipe(true)
	if err == nil {
		s.stdout.pipe, err = s.pipe(false)
	}
	if err == nil {
		s.stderr.pipe, err = s.pipe(false)
	}
	if err != nil {
		s.CloseFiles()
		s.Discard()
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	return s, nil
}

// Files are the program's standard streams. They are to be closed here, by
// CloseFiles, when the program has them.
func (s *Slot) Files() []*os.File { return s.files }

// CloseFiles closes the program's ends.
func (s *Slot) CloseFiles() {
	for _, file := range s.files {
		_ = file.Close()
	}
	s.files = nil
}

// Join moves a process that was started elsewhere into the slot and makes it
// its program.
func (s *Slot) Join(child *reaper.Child) (*Process, error) {
	if err := s.group.join(child); err != nil {
		return nil, err
	}
	return &Process{Slot: s, child: child}, nil
}

// Discard gives up a slot that has no program, or one that was killed.
func (s *Slot) Discard() {
	for _, file := range []*os.File{s.stdin, s.stdout.pipe, s.stderr.pipe} {
		if file != nil {
			_ = file.Close()
		}
	}
	s.group.release()
}

// Silence gives the program no input and throws away what it writes.
func (s *Slot) Silence() {
	_ = s.stdin.Close()
	s.runner.orphans.discard(s.stdout.pipe)
	s.runner.orphans.discard(s.stderr.pipe)
}

// Abandon leaves the slot to what still runs in it, whose output is discarded.
func (s *Slot) Abandon() {
	s.runner.orphans.discard(s.stdout.pipe)
	s.runner.orphans.discard(s.stderr.pipe)
	s.group.release()
}

// pipe makes the program's next descriptor, which it reads if it is its input,
// and returns the other end. Programs expect descriptors that block.
func (s *Slot) pipe(input bool) (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	theirs, own := fds[0], fds[1]
	if !input {
		theirs, own = own, theirs
	}
	s.files = append(s.files, os.NewFile(uintptr(theirs), "pipe"))
	if err := unix.SetNonblock(own, true); err != nil {
		return nil, errors.Join(err, unix.Close(own))
	}
	return os.NewFile(uintptr(own), "pipe"), nil
}

// scriptFile makes a file in memory that holds code.
func scriptFile(code []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("code", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make script file: %w", err)
	}
	file := os.NewFile(uintptr(fd), "code")
	if _, err := file.Write(code); err != nil {
		return nil, errors.Join(fmt.Errorf("write script file: %w", err), file.Close())
	}
	return file, nil
}
