package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stop powers the machine off, or kills it if it does not answer, and clears up
// what a machine that ended by itself has left. Nothing is left but disks. A
// machine that is not up gives [ErrNotRunning], after the clearing up.
func (m Machine) Stop(ctx context.Context) error {
	was, err := m.Status()
	if err != nil {
		return err
	}
	if err := m.endSupervisor(ctx); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.Name, err)
	}
	lock, err := m.lock()
	switch {
	case errors.Is(err, fs.ErrNotExist) && was.up(): // its disks are elsewhere
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("stop machine %s: %w", m.Name, ErrNotRunning)
	case errors.Is(err, ErrRunning):
		return fmt.Errorf("stop machine %s: it is being started; interrupt that instead", m.Name)
	case err != nil:
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := os.RemoveAll(m.Run); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.Name, err)
	}
	if !was.up() {
		return fmt.Errorf("stop machine %s: %w", m.Name, ErrNotRunning)
	}
	return nil
}

// endSupervisor asks the supervisor, if there is one, to stop the machine and
// waits until it is gone; after [killAfter] it is killed, and QEMU with it.
func (m Machine) endSupervisor(ctx context.Context) error {
	rec, err := m.readRecord()
	if err != nil || rec.SupervisorPID == 0 {
		return err
	}
	// The descriptor is taken first: from here on it means one process, and if
	// that has the recorded start time it is the supervisor.
	fd, err := unix.PidfdOpen(rec.SupervisorPID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open supervisor: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !rec.supervised() {
		return nil // It is gone, and its process id may be somebody else's.
	}
	for _, try := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, killAfter}, {unix.SIGKILL, killAfter}} {
		if err := unix.PidfdSendSignal(fd, try.signal, nil, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal supervisor: %w", err)
		}
		if gone, err := awaitExit(ctx, fd, try.wait); gone || err != nil {
			return err
		}
	}
	return errors.New("the supervisor cannot be killed")
}

// awaitExit reports whether the process behind a pidfd ends within timeout.
func awaitExit(ctx context.Context, pidfd int, timeout time.Duration) (bool, error) {
	// How long ctx may be over before that is noticed.
	const slice = 200 * time.Millisecond
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("wait for supervisor: %w", err)
		}
		if n > 0 {
			return true, nil
		}
	}
	return false, nil
}
