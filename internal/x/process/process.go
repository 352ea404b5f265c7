// Package process knows a process of this host for certain.
//
// The one idea: a process id is only a number, which is another process's as
// soon as its own has ended. An [ID] tells a process from every other that ever
// had its number, and a [Handle] holds on to it, so that a signal never reaches
// another one. It need not be a child of the caller's.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNotIt is returned where a process has ended, and its number may be another
// one's by now.
var ErrNotIt = errors.New("it is not that process")

// ID tells one process from every other that ran since the host was booted.
type ID struct {
	PID int `json:"pid"`
	// Started is when it began, in clock ticks after the host's boot.
	Started uint64 `json:"started"`
	// Exe is what it executes.
	Exe File `json:"exe"`
}

// File tells one file from every other on this host.
type File struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// FileAt is the file that is found at path.
func FileAt(path string) (File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return File{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return File{Dev: st.Dev, Ino: st.Ino}, nil
}

// Of returns the ID of the process that has that number now.
func Of(pid int) (ID, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ID{}, err
	}
	id := ID{PID: pid}
	// The name, which is in parentheses, may hold any byte.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const started = 22 - 3 // the first field behind the name is the third
	if len(fields) <= started {
		return ID{}, fmt.Errorf("/proc/%d/stat: unexpected content", pid)
	}
	if id.Started, err = strconv.ParseUint(string(fields[started]), 10, 64); err != nil {
		return ID{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	if id.Exe, err = FileAt(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
		return ID{}, err
	}
	return id, nil
}

// Handle is a hold on a process. Its methods may be called by any number of
// goroutines.
type Handle struct {
	file *os.File // a pidfd, which the runtime polls
}

// Open takes hold of the process that has that number now.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	return &Handle{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Find takes hold of one process. The error is [ErrNotIt] if it has ended.
func Find(id ID) (*Handle, error) {
	h, err := Open(id.PID)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("process %d: %w", id.PID, ErrNotIt)
	}
	if err != nil {
		return nil, err
	}
	// What is found under the number while the handle's process lives is about
	// that one.
	now, err := Of(id.PID)
	if err != nil || now != id || h.ended() {
		return nil, errors.Join(fmt.Errorf("process %d: %w", id.PID, ErrNotIt), h.Close())
	}
	return h, nil
}

// Wait returns nil when the process has ended, and an error if the handle was
// closed before.
func (h *Handle) Wait() error {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(readable)
}

func (h *Handle) ended() bool {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	err = raw.Control(func(fd uintptr) { ended = readable(fd) })
	return err != nil || ended
}

// readable tells of a pidfd whether its process has ended.
func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// Kill ends the process. One that has ended is no error.
func (h *Handle) Kill() error {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.PidfdSendSignal(int(fd), syscall.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if failed != nil && !errors.Is(failed, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", failed)
	}
	return nil
}

// Close lets go of the process, which goes on, and ends a Wait.
func (h *Handle) Close() error { return h.file.Close() }
