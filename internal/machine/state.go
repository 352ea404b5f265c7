package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// State is what a machine is doing.
type State string

// The states of a machine.
const (
	// Stopped: there is nothing but its disks.
	Stopped State = "stopped"
	// Starting: not yet usable.
	Starting State = "starting"
	// Running: PID 1 answers, and emberd did when the machine was started.
	Running State = "running"
	// Stalled: PID 1 had not answered for [StallAfter], so it was killed.
	Stalled State = "stalled"
	// Exited: it ended without being asked to.
	Exited State = "exited"
)

// Status describes a machine.
type Status struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Reason says what went wrong, if something did.
	Reason string `json:"reason,omitempty"`
	// Listen is the address on this host where the API answers; empty for a
	// machine without emberd.
	Listen    string    `json:"listen,omitempty"`
	StartedAt time.Time `json:"started_at,omitzero"`
	// SupervisorPID and QEMUPID are there while the machine is up.
	SupervisorPID int `json:"supervisor_pid,omitempty"`
	QEMUPID       int `json:"qemu_pid,omitempty"`
	// DaemonRestarts counts how often emberd ended by itself.
	DaemonRestarts int `json:"daemon_restarts,omitempty"`
}

// record is the state file: the status, and what proves that the process with
// the supervisor's id is still the supervisor.
type record struct {
	Status
	SupervisorStart string `json:"supervisor_start"`
}

// supervised tells whether the supervisor that wrote rec lives.
func (rec record) supervised() bool {
	start, err := startTime(rec.SupervisorPID)
	return err == nil && start == rec.SupervisorStart
}

// Status returns what the machine is doing. Whether it is up is known from its
// lock, which ends with the supervisor, and not from what was written down. One
// of the same name that has its disks elsewhere is this machine, too.
func (m Machine) Status() (Status, error) {
	// In this order: a supervisor writes its last state before it gives the
	// lock back.
	up, err := m.locked()
	if err != nil {
		return Status{}, err
	}
	rec, err := m.readRecord()
	if err != nil {
		return Status{}, err
	}
	switch {
	case up && rec.State == Stopped:
		rec.State = Starting
	case !up && rec.up() && !rec.supervised():
		rec.State, rec.Reason = Exited, "its supervisor was killed"
	}
	if !rec.up() {
		rec.SupervisorPID, rec.QEMUPID = 0, 0
	}
	return rec.Status, nil
}

// up reports whether the machine is there, or is about to be.
func (s Status) up() bool { return s.State == Starting || s.State == Running }

func (m Machine) readRecord() (record, error) {
	rec := record{Status: Status{Name: m.Name, State: Stopped}}
	data, err := os.ReadFile(m.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, fmt.Errorf("read state of machine %s: %w", m.Name, err)
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("read state of machine %s: %w", m.Name, err)
	}
	return rec, nil
}

func (m Machine) writeRecord(rec record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write state of machine %s: %w", m.Name, err)
	}
	if err := renameio.WriteFile(m.stateFile(), data, 0o600); err != nil {
		return fmt.Errorf("write state of machine %s: %w", m.Name, err)
	}
	return nil
}

// lock takes the machine's lock, or returns [ErrRunning]. The lock belongs to
// the open file: it lasts until every process that was passed it has closed it.
func (m Machine) lock() (*os.File, error) {
	f, err := os.OpenFile(m.lockFile(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock machine %s: %w", m.Name, err)
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = ErrRunning
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock machine %s: %w", m.Name, err)
	}
	return f, nil
}

// locked reports whether somebody holds the machine's lock, without taking it.
func (m Machine) locked() (bool, error) {
	f, err := os.Open(m.lockFile())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("query lock of machine %s: %w", m.Name, err)
	}
	defer func() { _ = f.Close() }()
	query := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &query); err != nil {
		return false, fmt.Errorf("query lock of machine %s: %w", m.Name, err)
	}
	return query.Type != unix.F_UNLCK, nil
}

// startTime returns what the kernel calls the start time of a process. With the
// process id it names one process for as long as the host is up.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	// The second field is the program's name in parentheses and may hold
	// anything; the start time is the 22nd of all, the 20th after it.
	_, rest, ok := strings.Cut(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]), ")")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("read start time of process %d: unknown format", pid)
	}
	if fields[0] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[19], nil
}
