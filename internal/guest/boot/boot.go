// Package boot makes a running system out of what the kernel hands to PID 1: an
// initramfs with a few modules, and a disk with a read-only root filesystem.
//
// The steps are the same for a sandbox and for the machine, and what they mount
// is data. Everything that is written goes to memory above the disk, so every
// boot begins with the same files. A step that fails ends the boot: nothing
// here carries on with half a system. The package starts no process.
package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// rootDisk is the device with the root filesystem, and diskTimeout how long the
// kernel may take to find it.
const (
	rootDisk    = "/dev/vda"
	diskTimeout = 20 * time.Second
)

// Params is what the kernel command line tells emberd-init.
type Params struct {
	// Interpreter is emberd.interpreter; empty if it is not given. CodeFlag and
	// FileFlag are emberd.code_flag and emberd.file_flag, what it needs before
	// code and before a file of code.
	Interpreter, CodeFlag, FileFlag string
	// Warm is emberd.warm, how the interpreter is started ahead of programs; empty
	// if it is not.
	Warm string
	// Watch is emberd.watch, what of the filesystem has to be as it was for that.
	Watch string
	// Role is emberd.role; empty means a sandbox.
	Role string
}

// ParseCmdline reads the parameters out of a kernel command line. The last of
// two equal ones counts, as in the kernel.
func ParseCmdline(line string) Params {
	var p Params
	for field := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(field, "=")
		switch name {
		case "emberd.interpreter":
			p.Interpreter = value
		case "emberd.code_flag":
			p.CodeFlag = value
		case "emberd.file_flag":
			p.FileFlag = value
		case "emberd.warm":
			p.Warm = value
		case "emberd.watch":
			p.Watch = value
		case "emberd.role":
			p.Role = value
		}
	}
	return p
}

// Run boots the system. It is called once, by PID 1, before anything else.
func Run() (Params, error) {
	if err := mountAll(early); err != nil {
		return Params{}, err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Params{}, fmt.Errorf("read command line: %w", err)
	}
	params := ParseCmdline(string(cmdline))
	if err := loadModules(); err != nil {
		return params, err
	}
	if err := waitFor(rootDisk, diskTimeout); err != nil {
		return params, fmt.Errorf("wait for the root disk: %w", err)
	}
	if err := mountAll(root); err != nil {
		return params, err
	}
	if err := switchRoot(newRoot); err != nil {
		return params, fmt.Errorf("switch root: %w", err)
	}
	if err := mountAll(late); err != nil {
		return params, err
	}
	return params, settle(params)
}

// settle gives the mounted system its names and what programs begin with.
func settle(p Params) error {
	for link, target := range links {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	name := "sandbox"
	if p.Role != "" {
		name = p.Role
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// What programs inherit. The kernel's 1024 is too few for servers, and a
	// limit of a million makes programs slow that close every descriptor.
	files := syscall.Rlimit{Cur: 16 << 10, Max: 1 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("set limit of open files: %w", err)
	}
	if err := groupPrograms(); err != nil {
		return fmt.Errorf("control group of programs: %w", err)
	}
	return loopbackUp()
}

// maxKmsg is less than the longest line that the kernel takes for its log.
const maxKmsg = 900

// Halt writes why PID 1 cannot go on to the console and resets the system,
// which ends the VMM. It does not return.
func Halt(why error) {
	line := fmt.Sprintf("emberd-init: %v", why)
	// The kernel has sent what it logs before the write returns, and needs no
	// interrupt of the serial port for that, which emberd's own kernel has not.
	err := os.WriteFile("/dev/kmsg", fmt.Appendf(nil, "<0>%.*s\n", maxKmsg, line), 0)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, line)
		_ = unix.IoctlSetInt(int(os.Stderr.Fd()), unix.TCSBRK, 1) // until it is sent
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	// A kernel whose PID 1 ends panics, and resets too.
	os.Exit(1)
}
