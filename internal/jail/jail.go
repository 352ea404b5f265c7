// Package jail confines a VMM process: what it may see, what it may use, and
// who it is.
//
// Each VMM is started by Firecracker's jailer and has a user and group id of
// its own, a root directory with nothing in it but its VM's files, namespaces
// of its own for mounts, network (without any interface), processes, IPC and
// host name, and a cgroup that bounds its memory, CPU, processes and I/O. It is
// started inside its cgroup and its namespaces, so there is no moment at which
// it is outside of them. A jail is a value, [sandbox.Jail], that is decided
// first and then carried out. A VMM is started before it is known what VM it is
// for, or for which size; its jail is equipped when that is chosen.
//
// The invariant: every name a jail has on the host is derived from the
// microVM's id, so that whatever the daemon was doing when it died, the next one
// finds all of it ([Jailer.Left]) and takes it over or clears it; and a user id
// has a new owner only when nothing of the old one is left. There is no way to
// start a VMM unjailed.
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

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
	"github.com/emberd/emberd/internal/x/lockfile"
)

// Fault points of [Jailer.Start], one for each step.
const (
	FaultUser   = "jail.user"
	FaultCgroup = "jail.cgroup"
	FaultRoot   = "jail.root"
	FaultStart  = "jail.start"
	FaultVerify = "jail.verify"
)

// Fault points of [Process.Equip].
const (
	FaultPlace = "jail.place"
	FaultLimit = "jail.limit"
)

// FaultPoints are the steps of [Jailer.Start] and [Process.Equip] that a test
// can break.
var FaultPoints = []string{FaultUser, FaultCgroup, FaultRoot, FaultStart, FaultVerify, FaultPlace, FaultLimit}

// Config says where jails are made.
type Config struct {
	// Firecracker and Jailer are the executables, of the same release.
	Firecracker, Jailer string
	// Dir is where root directories are made. It must be on the filesystem of
	// the files that VMs share, and allow devices and programs.
	Dir string
	// Users are the user and group ids that VMMs are given.
	Users IDRange
	// UserLocks is the directory in which the daemons of this host, whatever
	// their other directories are, lock the ids that they hand out.
	UserLocks string

	Log    *slog.Logger
	Faults *fault.Set
}

// Jailer starts VMMs in jails. Its methods may be called by any number of
// goroutines.
type Jailer struct {
	cfg     Config
	dir     *os.Root
	cgroups cgroupTree
	users   *users
	unlock  func() error
	left    []sandbox.VMID

	// What this host has: the disk that jails are on, or why there is none
	// that can be limited; and user-space page faults.
	disk      string
	diskErr   error
	userfault bool
}

// Open prepares to make jails in cfg.Dir. What an earlier daemon left there stays
// as it is. It fails when another daemon makes jails in the same directory.
func Open(cfg Config) (_ *Jailer, err error) {
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("jail directory: %w", err)
	}
	j := &Jailer{cfg: cfg}
	if j.dir, err = openDir(cfg.Dir); err != nil {
		return nil, err
	}
	if j.unlock, err = lockfile.Take(filepath.Join(cfg.Dir, "lock")); err != nil {
		return nil, errors.Join(fmt.Errorf("another emberd makes jails in %s: %w", cfg.Dir, err), j.dir.Close())
	}
	if err := j.prepare(); err != nil {
		return nil, errors.Join(err, j.unlock(), j.dir.Close())
	}
	return j, nil
}

// Cgroup is the cgroup whose children hold a VMM each, as in /proc/PID/cgroup.
func (j *Jailer) Cgroup() string { return "/" + j.cgroups.name }

func (j *Jailer) prepare() (err error) {
	if j.cgroups, err = openCgroups(cgroupRoot, cgroupName(j.cfg.Dir)); err != nil {
		return err
	}
	if j.left, err = j.look(); err != nil {
		return err
	}
	if j.users, err = openUsers(j.cfg.Users, j.cfg.UserLocks, j.cfg.Dir); err != nil {
		return err
	}
	if j.disk, j.diskErr = diskOf(j.cfg.Dir); j.diskErr == nil && !j.cgroups.io {
		j.disk, j.diskErr = "", errors.New("the kernel has no io controller")
	}
	if j.diskErr != nil {
		j.cfg.Log.Warn("reads and writes of VMMs are not limited", "err", j.diskErr)
	}
	_, err = os.Lstat("/dev/userfaultfd")
	j.userfault = err == nil
	return nil
}

// Close lets another daemon use the directory and the user ids. It is called
// once no VMM runs that was not left.
func (j *Jailer) Close() error {
	return errors.Join(j.cgroups.remove(), j.users.close(), j.unlock(), j.dir.Close())
}

// Spec is one VMM to start.
type Spec struct {
	ID sandbox.VMID
	// FileMiB is the size of the largest file that the VMM has to write, zero
	// for one that writes none.
	FileMiB int
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
	name := string(spec.ID)

	if err := faults.Hit(FaultUser); err != nil {
		return nil, err
	}
	user, err := j.users.lease()
	if err != nil {
		return nil, err
	}
	undo.Add(FaultUser, func(context.Context) error { return j.giveBack(user, name) })
	plan := j.plan(spec, user)

	if err := faults.Hit(FaultCgroup); err != nil {
		return nil, err
	}
	if err := j.cgroups.create(name, plan.CgroupLimits); err != nil {
		return nil, err
	}
	undo.Add(FaultCgroup, func(ctx context.Context) error { return j.cgroups.kill(ctx, name) })

	undo.Add(FaultRoot, func(context.Context) error { return j.removeRoot(name) })
	if err := j.makeRoot(name); err != nil {
		return nil, err
	}
	if err := faults.Hit(FaultRoot); err != nil {
		return nil, err
	}

	p, err := j.spawn(ctx, spec, plan)
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

// giveBack ends the lease of a VMM's user id, once it is certain that nothing of
// the VMM is left: a cgroup goes only when no process is in it.
func (j *Jailer) giveBack(user int, name string) error {
	_, cgroup := os.Lstat(j.cgroups.path(name))
	_, root := j.dir.Lstat(j.jailDir(name))
	if errors.Is(cgroup, fs.ErrNotExist) && errors.Is(root, fs.ErrNotExist) {
		j.users.release(user)
		return nil
	}
	j.cfg.Log.Error("something of a VMM is left, so its user id stays taken", "jail", name, "uid", user)
	return fmt.Errorf("user id %d: the jail %s is not gone", user, name)
}

// cgroupName is the cgroup of all jails in dir. Two daemons that work side by
// side have two directories, and must not take each other's VMMs for leftovers.
func cgroupName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "emberd-" + hex.EncodeToString(sum[:4])
}
