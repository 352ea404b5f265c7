package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
)

// openDir opens the directory of the jails. Nobody but this process's user may
// be able to put something else where it, or any directory above it, is found:
// the jailer works with paths, so what they mean must not change.
func openDir(dir string) (*os.Root, error) {
	// What is there is checked before anything is made in it, and once more with
	// the links resolved.
	if err := checkPath(dir); err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	if err := checkPath(real); err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	// Only root passes: a jailed VMM is put into its root directory and needs
	// no way to it.
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("jail directory: %s is %v, want a directory that is its owner's alone", dir, info.Mode())
	}
	return os.OpenRoot(dir)
}

// checkPath returns an error if a part of path belongs to somebody else, or is
// a directory in which somebody else may put something into the place of ours.
// The last parts of path need not exist.
func checkPath(path string) error {
	for ; ; path = filepath.Dir(path) {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the root directory exists
		}
		if err != nil {
			return err
		}
		if err := checkOwner(path, info); err != nil {
			return err
		}
		sticky := info.Mode()&fs.ModeSticky != 0
		if info.IsDir() && info.Mode().Perm()&0o022 != 0 && !sticky {
			return fmt.Errorf("%s can be written by others (%v)", path, info.Mode())
		}
		if path == "/" {
			return nil
		}
	}
}

// checkOwner returns an error if a file is neither root's nor this process's.
func checkOwner(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d", path, st.Uid)
	}
	return nil
}

// makeRoot makes the root directory of a VMM and links its shared files into
// it. The jailer adds devices and Firecracker itself, and refuses a directory
// that was used before.
func (j *Jailer) makeRoot(name string) error {
	if err := j.dir.MkdirAll(j.execName(), 0o700); err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	if err := j.dir.Mkdir(j.jailDir(name), 0o700); err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	if err := j.dir.Mkdir(j.rootDir(name), 0o700); err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	return nil
}

// place puts the shared ones among files into the root directory of a VMM, which
// may be the VMM's own by now: nothing that is there is followed or replaced.
func (j *Jailer) place(name string, files []sandbox.JailFile) error {
	root, err := j.dir.Open(j.rootDir(name))
	if err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	defer func() { _ = root.Close() }()
	for _, f := range files {
		if f.Source == "" {
			continue
		}
		err := linkInto(root, strings.TrimPrefix(f.Path, "/"), f.Source)
		if errors.Is(err, unix.EXDEV) {
			return fmt.Errorf("jail root: %s is on another filesystem than %s; keep both in one data directory", f.Source, j.cfg.Dir)
		}
		if err != nil {
			return fmt.Errorf("jail root: %w", err)
		}
	}
	return nil
}

// linkInto makes name in dir a hard link of source, which must be a regular
// file that no VMM can change. What is linked is what was looked at.
func linkInto(dir *os.File, name, source string) error {
	fd, err := unix.Open(source, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: source, Err: err}
	}
	f := os.NewFile(uintptr(fd), source)
	defer func() { _ = f.Close() }()
	if err := checkShared(f); err != nil {
		return err
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return &os.LinkError{Op: "link", Old: source, New: name, Err: err}
	}
	return nil
}

// checkShared returns an error if f may not be in the jails of several VMs.
func checkShared(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is %v, want a regular file that only its owner can write", f.Name(), info.Mode())
	}
	return checkOwner(f.Name(), info)
}

// take moves a file that a VMM has made out of its root directory, and makes it
// one that VMs may share. The VMM has ended, and had the files to itself until
// then: it must not have put anything else in the place of one, nor have another
// name for it.
func (j *Jailer) take(name, file, to string, user int) error {
	root, err := j.dir.Open(j.rootDir(name))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	fd, err := unix.Openat(int(root.Fd()), file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: file, Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != user || st.Nlink != 1 {
		return fmt.Errorf("%s is not a file that the VMM has made", file)
	}
	if err := errors.Join(f.Chown(os.Geteuid(), os.Getegid()), f.Chmod(0o444)); err != nil {
		return err
	}
	err = unix.Renameat2(int(root.Fd()), file, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: file, New: to, Err: err}
	}
	return nil
}

// removeRoot removes the root directory of a VMM and all that is in it. It may
// be gone already, and it may hold whatever its VMM could make.
func (j *Jailer) removeRoot(name string) error {
	if err := j.dir.RemoveAll(j.jailDir(name)); err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	return nil
}

// children are the jails that have a root directory.
func (j *Jailer) children() ([]string, error) {
	entries, err := fs.ReadDir(j.dir.FS(), j.execName())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// The jailer keeps jails in a folder named after the executable, and the root
// directory in a folder named after the jail. These are relative to the
// directory of the jails.
func (j *Jailer) execName() string           { return filepath.Base(j.cfg.Firecracker) }
func (j *Jailer) jailDir(name string) string { return filepath.Join(j.execName(), name) }
func (j *Jailer) rootDir(name string) string { return filepath.Join(j.jailDir(name), "root") }
