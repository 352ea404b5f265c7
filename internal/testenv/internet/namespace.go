package internet

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNamespace is the network namespace of the thread that opens it.
const threadNamespace = "/proc/thread-self/ns/net"

// namespace is a network namespace that is there for as long as it is open.
type namespace struct{ f *os.File }

func newNamespace() (ns *namespace, err error) {
	err = onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		f, err := os.Open(threadNamespace)
		ns = &namespace{f}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return ns, nil
}

// do runs f on a thread that is in the namespace.
func (ns *namespace) do(f func() error) error {
	return onThread(func() error { return unix.Setns(int(ns.f.Fd()), unix.CLONE_NEWNET) }, f)
}

func (ns *namespace) close() error { return ns.f.Close() }

// onThread runs f on a thread that enter has taken elsewhere, which is then
// brought back.
func onThread(enter, f func() error) (err error) {
	runtime.LockOSThread()
	home, err := os.Open(threadNamespace)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, back) // the thread stays locked, and ends with its goroutine
		} else {
			runtime.UnlockOSThread()
		}
		_ = home.Close()
	}()
	if err := enter(); err != nil {
		return err
	}
	return f()
}
