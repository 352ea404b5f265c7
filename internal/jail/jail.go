// Package jail confines a VMM process: what it may see, what it may use, and
// who it is.
//
// Each VMM is started by Firecracker's jailer and has a user and group id of
// its own, a root directory with nothing in it but its VM's files, namespaces
// of its own for mounts, network (without any interface), processes, IPC and
// host name, and a cgroup that bounds its memory, CPU and processes. It is
// started inside its cgroup and its namespaces, so there is no moment at which
// it is outside of them.
//
// The invariant: every name a jail has on the host is derived from the
// sandbox's id, so that whatever the daemon was doing when it died, [Open]
// finds and clears all of it. There is no way to start a VMM unjailed.
//
// The package knows nothing of Firecracker's API; it starts what it is told.
package jail

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [Jailer.Start], one for each step.
const (
	FaultUser   = "jail.user"
	FaultCgroup = "jail.cgroup"
	FaultRoot   = "jail.root"
	FaultStart  = "jail.start"
	FaultVerify = "jail.verify"
)

// FaultPoints are the steps of [Jailer.Start] that a test can break.
var FaultPoints = []string{FaultUser, FaultCgroup, FaultRoot, FaultStart, FaultVerify}

// The user and group ids of VMMs: a range clear of those that distributions
// hand out.
const (
	firstUser = 0x656d0000
	userCount = 0x10000
)

// Config says where jails are made.
type Config struct {
	// Firecracker and Jailer are the executables, of the same release.
	Firecracker, Jailer string
	// Dir is where root directories are made. It must be on the filesystem of
	// the files that VMs share, and allow devices and programs.
	Dir string

	Log    *slog.Logger
	Faults *fault.Set
}

// Jailer starts VMMs in jails. Its methods may be called by any number of
// goroutines.
type Jailer struct {
	cfg     Config
	cgroups cgroupTree
	users   *users
	lock    *os.File
}

// Open prepares to make jails in cfg.Dir and clears what an earlier daemon left
// there: processes, cgroups and root directories. It fails when another daemon
// makes jails in the same directory.
func Open(ctx context.Context, cfg Config) (*Jailer, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	cfg.Dir = dir
	// Only root passes: a jailed VMM is put into its root directory and needs
	// no way to it.
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another emberd makes jails in %s: %w", cfg.Dir, err)
	}
	j := &Jailer{cfg: cfg, lock: lock, users: newUsers(firstUser, userCount)}
	if j.cgroups, err = openCgroups(cgroupRoot, cgroupName(dir)); err == nil {
		err = j.sweep(ctx)
	}
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	return j, nil
}

// Close lets another daemon use the directory. It is called once no VMM runs.
func (j *Jailer) Close() error {
	return errors.Join(j.cgroups.remove(), j.lock.Close())
}

// sweep ends every process in the jails' cgroups and removes the cgroups and
// root directories.
func (j *Jailer) sweep(ctx context.Context) error {
	names, err := j.cgroups.children()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		j.cfg.Log.Warn("removing a VMM that an earlier emberd left", "jail", name)
		errs = append(errs, j.cgroups.kill(ctx, name))
	}
	dirs, err := os.ReadDir(j.rootsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, d := range dirs {
		errs = append(errs, os.RemoveAll(filepath.Join(j.rootsDir(), d.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clearing old jails: %w", err)
	}
	return nil
}

// Spec is one VMM to start.
type Spec struct {
	ID   sandbox.ID
	Size sandbox.Size
	// Files are hard-linked into the root directory, name to path on the host.
	Files map[string]string
	// Args are given to Firecracker.
	Args []string
}

// Start starts one VMM. It returns when the process is in its jail, which is
// before Firecracker's API answers. On error nothing is left of it.
func (j *Jailer) Start(ctx context.Context, spec Spec) (_ *Process, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Unwind(ctx))
		}
	}()
	faults := j.cfg.Faults

	if err := faults.Hit(FaultUser); err != nil {
		return nil, err
	}
	user, err := j.users.lease()
	if err != nil {
		return nil, err
	}
	undo.Add(FaultUser, func(context.Context) error { j.users.release(user); return nil })

	name := jailID(spec.ID)
	if err := faults.Hit(FaultCgroup); err != nil {
		return nil, err
	}
	if err := j.cgroups.create(name, limitsFor(spec.Size)); err != nil {
		return nil, err
	}
	undo.Add(FaultCgroup, func(ctx context.Context) error { return j.cgroups.kill(ctx, name) })

	undo.Add(FaultRoot, func(context.Context) error { return os.RemoveAll(j.jailDir(name)) })
	if err := j.makeRoot(name, spec.Files); err != nil {
		return nil, err
	}
	if err := faults.Hit(FaultRoot); err != nil {
		return nil, err
	}

	p, err := j.spawn(name, user, spec.Args)
	if err != nil {
		return nil, err
	}
	undo.Add(FaultStart, p.end)
	if err := faults.Hit(FaultStart); err != nil {
		return nil, err
	}
	if err := j.cgroups.holds(name, p.PID()); err != nil {
		return nil, err
	}
	if err := faults.Hit(FaultVerify); err != nil {
		return nil, err
	}
	p.undo, undo = undo, cleanup.Stack{}
	return p, nil
}

// makeRoot makes the root directory of a VMM and links its files into it. The
// jailer adds devices and Firecracker itself, and refuses a directory that was
// used before.
func (j *Jailer) makeRoot(name string, files map[string]string) error {
	root := j.rootDir(name)
	if err := os.MkdirAll(j.rootsDir(), 0o700); err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	if err := os.Mkdir(j.jailDir(name), 0o700); err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	if err := os.Mkdir(root, 0o700); err != nil {
		return fmt.Errorf("jail root: %w", err)
	}
	for file, source := range files {
		err := os.Link(source, filepath.Join(root, file))
		if errors.Is(err, unix.EXDEV) {
			return fmt.Errorf("jail root: %s is on another filesystem than %s; keep both in one data directory", source, j.cfg.Dir)
		}
		if err != nil {
			return fmt.Errorf("jail root: %w", err)
		}
	}
	return nil
}

// cgroupName is the cgroup of all jails in dir. Two daemons that work side by
// side have two directories, and must not take each other's VMMs for leftovers.
func cgroupName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "emberd-" + hex.EncodeToString(sum[:4])
}

// The jailer keeps jails in a folder named after the executable, and the root
// directory in a folder named after the jail.
func (j *Jailer) rootsDir() string {
	return filepath.Join(j.cfg.Dir, filepath.Base(j.cfg.Firecracker))
}
func (j *Jailer) jailDir(name string) string { return filepath.Join(j.rootsDir(), name) }
func (j *Jailer) rootDir(name string) string { return filepath.Join(j.jailDir(name), "root") }

// jailID is the sandbox's id in the characters that the jailer takes: letters,
// digits and hyphens.
func jailID(id sandbox.ID) string { return strings.ReplaceAll(string(id), "_", "-") }
