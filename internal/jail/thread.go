package jail

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// umask makes what a VMM creates, its sockets, its own user's alone.
const umask = 0o077

// capability is one that the jailer is left with.
type capability struct {
	name   string
	number uintptr
}

// jailerCapabilities are what it takes to make a root directory, its devices
// and a mount namespace, and to become another user.
var jailerCapabilities = []capability{
	{"chown", unix.CAP_CHOWN},
	{"dac_override", unix.CAP_DAC_OVERRIDE},
	{"fowner", unix.CAP_FOWNER},
	{"mknod", unix.CAP_MKNOD},
	{"setgid", unix.CAP_SETGID},
	{"setuid", unix.CAP_SETUID},
	{"sys_admin", unix.CAP_SYS_ADMIN},
}

// startReduced starts cmd from a thread that has given up what a jail must not
// inherit. All of this belongs to a thread, is passed on to its children and
// cannot be taken back, so the thread is used once: the runtime ends it together
// with the goroutine that never unlocks it.
func startReduced(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := reduceThread(); err != nil {
			started <- err
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

func reduceThread() error {
	// The umask is shared by the threads of a process until one parts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare umask: %w", err)
	}
	unix.Umask(umask)
	for c := range uintptr(64) {
		if slices.ContainsFunc(jailerCapabilities, func(keep capability) bool { return keep.number == c }) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no capability of that number, nor a higher one
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
