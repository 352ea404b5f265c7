package boot

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Where the parts of the root filesystem are put together.
const (
	lower   = "/lower"
	memory  = "/memory"
	newRoot = "/newroot"
)

// mount is one filesystem.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	// dirs are made in the filesystem once it is mounted.
	dirs []string
	// open lets every user write there.
	open bool
}

// noExec and noDev are what filesystems of the kernel's own need not allow.
const (
	noDev  = unix.MS_NOSUID | unix.MS_NODEV
	noExec = noDev | unix.MS_NOEXEC
)

// early is mounted in the initramfs and moves into the new root.
var early = []mount{
	{source: "proc", target: "/proc", fstype: "proc", flags: noExec},
	{source: "sysfs", target: "/sys", fstype: "sysfs", flags: noExec},
	{source: "devtmpfs", target: "/dev", fstype: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755"},
}

// root is the disk, and memory above it that takes what is written, whichever of
// the places for files it goes to: half of the memory, until [LimitFiles] says
// otherwise.
var root = []mount{
	{source: rootDisk, target: lower, fstype: "squashfs", flags: unix.MS_RDONLY},
	{source: "tmpfs", target: memory, fstype: "tmpfs", dirs: []string{"upper", "work", "tmp", "run"}},
	{
		source: "overlay", target: newRoot, fstype: "overlay",
		data: "lowerdir=" + lower + ",upperdir=" + memory + "/upper,workdir=" + memory + "/work",
	},
	{source: memory + "/tmp", target: newRoot + "/tmp", flags: unix.MS_BIND | noDev, open: true},
	{source: memory + "/run", target: newRoot + "/run", flags: unix.MS_BIND | noDev},
}

// late is mounted in the new root.
var late = []mount{
	{source: "devpts", target: "/dev/pts", fstype: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=0620,ptmxmode=0666,gid=5"},
	{source: "tmpfs", target: "/dev/shm", fstype: "tmpfs", flags: noDev, data: "mode=1777"},
	{source: "cgroup2", target: cgroupRoot, fstype: "cgroup2", flags: noExec},
}

// links are the names in /dev that shells and libraries expect.
var links = map[string]string{
	"/dev/fd":     "/proc/self/fd",
	"/dev/stdin":  "/proc/self/fd/0",
	"/dev/stdout": "/proc/self/fd/1",
	"/dev/stderr": "/proc/self/fd/2",
}

// LimitFiles changes how much may be written to files. It cannot become less
// than there is.
func LimitFiles(diskMiB int) error {
	// One filesystem takes all files, and can be reached only where a part of it
	// is mounted. The mount itself keeps its flags.
	return unix.Mount("", "/run", "", unix.MS_REMOUNT|noDev, fmt.Sprintf("size=%dm", diskMiB))
}

// FilesFull tells whether no more can be written to files, or no more of them
// made.
func FilesFull() bool {
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) != nil {
		return false
	}
	return fs.Blocks > 0 && fs.Bavail == 0 || fs.Files > 0 && fs.Ffree == 0
}

// mountAll mounts each of mounts, making its mount point first.
func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := makeDir(m.target); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
		if m.flags&unix.MS_BIND != 0 { // it takes its other flags only now
			if err := unix.Mount("", m.target, "", m.flags|unix.MS_REMOUNT, ""); err != nil {
				return fmt.Errorf("remount %s: %w", m.target, err)
			}
		}
		if m.open {
			if err := os.Chmod(m.target, 0o777|os.ModeSticky); err != nil {
				return err
			}
		}
		for _, dir := range m.dirs {
			if err := makeDir(filepath.Join(m.target, dir)); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeDir makes a directory, and those above it, that every user of the VM may
// enter.
func makeDir(path string) error {
	return os.MkdirAll(path, 0o755) //nolint:gosec // mount points of a whole system
}

// switchRoot makes dir the root of everything. pivot_root would be the way, but
// it refuses on an initramfs, which nothing can be mounted over and nothing can
// unmount; so its files are removed, to give their memory back, and it stays
// underneath.
func switchRoot(dir string) error {
	for _, m := range early {
		target := filepath.Join(dir, m.target)
		if err := makeDir(target); err != nil {
			return err
		}
		if err := unix.Mount(m.target, target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m.target, err)
		}
	}
	for _, path := range []string{"/init", moduleDir} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}
