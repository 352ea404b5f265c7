package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killGrace is how long programs may take to end when they are asked to.
const killGrace = 3 * time.Second

// Command carries out what the host has PID 1's executable do as an ordinary
// program of the machine. It reports whether args were such a thing:
//
//	poweroff      ask PID 1 to power off
//	remove FILE   remove a program that the host had copied in
func Command(args []string) (bool, error) {
	switch {
	case len(args) == 1 && args[0] == "poweroff":
		if err := syscall.Kill(1, syscall.SIGTERM); err != nil {
			return true, fmt.Errorf("ask PID 1 to power off: %w", err)
		}
		return true, nil
	case len(args) == 2 && args[0] == "remove":
		if filepath.Dir(args[1]) != execDir {
			return true, fmt.Errorf("remove %s: not in %s", args[1], execDir)
		}
		return true, os.Remove(args[1])
	}
	return false, nil
}

// PowerOff ends every program, puts the data disk in order and powers the
// machine off. Only PID 1 calls it. It returns only if the kernel refuses.
func PowerOff() error {
	endPrograms(syscall.SIGKILL)
	err := unix.Unmount(dataDir, 0)
	unix.Sync()
	return errors.Join(err, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// endPrograms sends every program sig and waits until all have ended, or for
// [killGrace].
func endPrograms(sig syscall.Signal) {
	// PID 1 itself is not among those that -1 stands for. It fails if there are
	// none.
	_ = syscall.Kill(-1, sig)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for end := time.Now().Add(killGrace); othersRun() && time.Now().Before(end); {
		<-tick.C
	}
}

// othersRun reports whether any program but PID 1 is there. Kernel threads,
// which have no command line, don't count, and neither do zombies.
func othersRun() bool {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return false
	}
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err == nil && len(cmdline) > 0 && !strings.HasPrefix(file, "/proc/1/") {
			return true
		}
	}
	return false
}
