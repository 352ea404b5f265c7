package warm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/guest/proc"
)

// maxGreeting is the longest line with which a process says that it is ready:
// "R", a process id and a newline.
const maxGreeting = len("R4194304\n")

// ready is a process that waits for its code.
type ready struct {
	proc    *proc.Process
	control *os.File
	origin  origin
}

// handOver gives code to the process and returns it, running. now is what another
// would be started from. After an error the process is dead and has run none of
// code.
func (r *ready) handOver(code []byte, now origin) (*proc.Process, error) {
	defer func() { _ = r.control.Close() }()
	if err := r.fit(now); err != nil {
		r.kill()
		r.proc.Discard()
		return nil, err
	}
	r.proc.Begin()
	err := r.send(code)
	if err != nil {
		// It may have gone ahead in the meantime; dead, it cannot any more.
		r.kill()
		if r.began() {
			err = nil
		}
	}
	if err != nil {
		r.proc.Discard()
		return nil, err
	}
	return r.proc, nil
}

// fit returns why the process is not to be given code. now is what one would be
// started from.
func (r *ready) fit(now origin) error {
	switch {
	case !r.proc.Child().Adopted():
		return errors.New("it is gone")
	case !r.origin.is(now):
		return errors.New("what it was started from has changed")
	}
	return nil
}

func (r *ready) send(code []byte) error {
	if err := r.control.SetDeadline(time.Now().Add(handOverTimeout)); err != nil {
		return err
	}
	msg := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(code)), uint32(len(code)))
	if _, err := r.control.Write(append(msg, code...)); err != nil {
		return fmt.Errorf("hand over the code: %w", err)
	}
	var reply [1]byte
	if _, err := io.ReadFull(r.control, reply[:]); err != nil {
		return fmt.Errorf("wait for the code to be taken: %w", err)
	}
	if reply[0] != 'G' {
		return fmt.Errorf("it answers %q", reply[:])
	}
	return nil
}

// began tells whether a process that is dead has said that it runs the code.
func (r *ready) began() bool {
	var reply [1]byte
	if r.control.SetDeadline(time.Time{}) != nil {
		return false
	}
	_, err := io.ReadFull(r.control, reply[:])
	return err == nil && reply[0] == 'G'
}

// kill ends the process and waits until it is dead.
func (r *ready) kill() {
	r.proc.Kill()
	<-r.proc.Child().Done()
}

// discard ends a process that gets no code.
func (r *ready) discard() {
	r.proc.Kill()
	_ = r.control.Close()
	r.proc.Discard()
}

// greeting reads the line with which a process says that it is ready, and
// returns its process id.
func greeting(control *os.File, timeout time.Duration) (int, error) {
	if err := control.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	var line [maxGreeting]byte
	for n := range line {
		if _, err := io.ReadFull(control, line[n:n+1]); err != nil {
			return 0, fmt.Errorf("wait for it to be ready: %w", err)
		}
		if line[n] != '\n' {
			continue
		}
		pid, err := strconv.Atoi(string(line[min(1, n):n]))
		if line[0] != 'R' || err != nil {
			break
		}
		return pid, nil
	}
	return 0, fmt.Errorf("it begins with %q", line)
}

// socketPair returns a control socket: this side's end, and the other's.
func socketPair() (own, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make control socket: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), theirs.Close())
	}
	return os.NewFile(uintptr(fds[0]), "control"), theirs, nil
}
