// Package machine is the KVM host that emberd brings along: one QEMU process
// that emulates an AMD CPU with SVM in software and runs emberd, the jailer and
// Firecracker exactly as a host with KVM does. It is for hosts that have none,
// and it is no security boundary.
//
// A machine has a name. Its disks are kept between starts; everything else is
// in its run directory and goes when it stops. While it is up it belongs to a
// supervisor, a process that owns QEMU and the only connection to the machine's
// PID 1, a virtio-serial port that speaks the agent protocol. Every exec in the
// machine and every API request is a stream on that connection, so the machine
// needs no network card, and its owner no privilege.
//
// Two things always hold. A machine whose supervisor is gone is gone: the
// kernel kills QEMU with it. And emulation can stall, so the supervisor never
// waits silently: a machine that has not answered for [StallAfter] is killed
// and said to be stalled, and whoever waits for it gets an error.
package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/paths"
)

// What a machine is when nothing else is said.
const (
	DefaultName   = "default"
	DefaultListen = "127.0.0.1:7777"
)

// StallAfter is how long PID 1 of a machine may not answer before the machine
// is declared stalled.
const StallAfter = 25 * time.Second

// Errors that callers tell apart.
var (
	// ErrRunning is returned by [Machine.Start] when the machine is up or is
	// being started.
	ErrRunning = errors.New("machine is already running")
	// ErrNotRunning is returned when something is asked of a machine that is
	// not up.
	ErrNotRunning = errors.New("machine is not running")
)

// Machine is one machine's name and the places of its files. Get one from
// [Locate]. It holds no other state: any process may use it.
type Machine struct {
	Name string
	// Disks holds what is kept between starts, Run what is not.
	Disks, Run string
}

// Locate returns the machine called name. Its disks are below data and its run
// directory is below run, where the caller may write there; else they are in
// the user's own cache and runtime directories.
func Locate(name string, data paths.Data, run paths.Run) (Machine, error) {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`).MatchString(name) {
		return Machine{}, fmt.Errorf("machine name %q: want at most 32 of a-z, 0-9 and -", name)
	}
	m := Machine{Name: name}
	var err error
	if m.Disks, err = filepath.Abs(filepath.Join(data.Machine(), name)); err != nil {
		return Machine{}, fmt.Errorf("locate machine %s: %w", name, err)
	}
	if m.Run, err = filepath.Abs(run.Machine(name)); err != nil {
		return Machine{}, fmt.Errorf("locate machine %s: %w", name, err)
	}
	if writable(m.Disks) && writable(m.Run) {
		return m, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Machine{}, fmt.Errorf("locate machine %s: %w", name, err)
	}
	if !writable(m.Disks) {
		m.Disks = filepath.Join(cache, "emberd", "machine", name)
	}
	if !writable(m.Run) {
		base := filepath.Join(cache, "emberd", "run")
		if xdg := os.Getenv("XDG_RUNTIME_DIR"); xdg != "" {
			base = filepath.Join(xdg, "emberd")
		}
		m.Run = paths.Run(base).Machine(name)
	}
	return m, nil
}

// writable reports whether dir can be written to, or made.
func writable(dir string) bool {
	for {
		err := unix.Access(dir, unix.W_OK|unix.X_OK)
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return err == nil
		}
		dir = filepath.Dir(dir)
	}
}

// The files of a machine. The lock is beside the disks, which it protects, and
// is never removed: a lock file that is removed can be held twice.
func (m Machine) lockFile() string      { return filepath.Join(m.Disks, "lock") }
func (m Machine) systemDisk() string    { return filepath.Join(m.Disks, "system.squashfs") }
func (m Machine) dataDisk() string      { return filepath.Join(m.Disks, "data.ext4") }
func (m Machine) initramfs() string     { return filepath.Join(m.Disks, "initramfs.cpio") }
func (m Machine) stateFile() string     { return filepath.Join(m.Run, "state.json") }
func (m Machine) agentSocket() string   { return filepath.Join(m.Run, "agent.sock") }
func (m Machine) supervisorLog() string { return filepath.Join(m.Run, "supervisor.log") }

// ConsoleLog is the last part of what the machine's kernel and PID 1 printed.
func (m Machine) ConsoleLog() string { return filepath.Join(m.Run, "console.log") }

// DaemonLog is the last part of the log of the emberd inside.
func (m Machine) DaemonLog() string { return filepath.Join(m.Run, "emberd.log") }
