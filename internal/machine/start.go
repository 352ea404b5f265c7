package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/progress"
)

// killAfter is how long a supervisor is given to end by itself. It needs
// longer than the guest may take to power off.
const killAfter = 25 * time.Second

// errSilent is what a supervisor is accused of that died.
var errSilent = errors.New("the supervisor ended without saying why")

// Config says what a machine is started with.
type Config struct {
	// Listen is the loopback address on this host where the machine's API is to
	// answer. When it is empty no emberd is started in the machine.
	Listen string
	// Data is the data directory that the machine's emberd gets a copy of.
	Data paths.Data
	// Bin is the directory of emberd, emberctl and emberd-init, linked
	// statically.
	Bin string
	// Supervisor is the command that calls [Supervise].
	Supervisor []string
}

// Start brings the machine up and returns when its API answers, or, without
// one, when programs can be run in it. If that fails or ctx ends, nothing is
// left but disks. A machine that is up gives [ErrRunning].
func (m Machine) Start(ctx context.Context, cfg Config, report progress.Func) error {
	data, err := filepath.Abs(string(cfg.Data))
	if err != nil {
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	cfg.Data = paths.Data(data)
	if err := m.check(cfg); err != nil {
		return err
	}
	if err := os.MkdirAll(m.Disks, 0o700); err != nil {
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	lock, err := m.lockToStart(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if rec, err := m.readRecord(); err == nil && rec.up() && rec.supervised() {
		return fmt.Errorf("start machine %s: one of that name has its disks elsewhere: %w", m.Name, ErrRunning)
	}
	if err := checkAddress(cfg.Listen); err != nil {
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	if err := m.buildDisks(ctx, cfg, report); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(m.Run), os.MkdirAll(m.Run, 0o700)); err != nil {
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	if err := m.supervise(ctx, cfg, lock, report); err != nil {
		err = fmt.Errorf("start machine %s: %w%s", m.Name, err, m.evidence(err))
		return errors.Join(err, os.RemoveAll(m.Run))
	}
	return nil
}

// lockToStart takes the machine's lock, and waits for it where a machine that
// ended by itself is just being cleared up.
func (m Machine) lockToStart(ctx context.Context) (*os.File, error) {
	lock, err := m.lock()
	if !errors.Is(err, ErrRunning) {
		return lock, err
	}
	if s, serr := m.Status(); serr != nil || s.State != Exited && s.State != Stalled {
		return nil, err
	}
	if err := m.endSupervisor(ctx); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	return m.lock()
}

// check looks for everything a machine is made of.
func (m Machine) check(cfg Config) error {
	for _, path := range []string{
		cfg.Data.Vmlinuz(), cfg.Data.MachineModules(), cfg.Data.Vmlinux(), cfg.Data.GuestModules(),
		cfg.Data.Firecracker(), cfg.Data.Jailer(), cfg.Data.Packs(),
	} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("start machine %s: %w (run emberctl setup)", m.Name, err)
		}
	}
	for _, name := range binaries() {
		if _, err := os.Stat(filepath.Join(cfg.Bin, name)); err != nil {
			return fmt.Errorf("start machine %s: %w (run make build)", m.Name, err)
		}
	}
	for _, program := range []string{qemuProgram, mksquashfs, mke2fs()} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("start machine %s: %w (run emberctl setup)", m.Name, err)
		}
	}
	return nil
}

// checkAddress finds out that an address is taken before the boot instead of
// after it. The emberd in the machine has no keys, and all that it could tell of
// a client is that it comes through the machine: none of another host may.
func checkAddress(address string) error {
	if address == "" {
		return nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	if addr := ln.Addr().(*net.TCPAddr); !addr.IP.IsLoopback() {
		return errors.Join(ln.Close(), fmt.Errorf("listen on %s: other hosts could reach this", address))
	}
	return ln.Close()
}

// supervise starts the supervisor, which takes the lock over, and returns when
// it says that the machine is up. If that fails the supervisor is gone.
func (m Machine) supervise(ctx context.Context, cfg Config, lock *os.File, report progress.Func) (err error) {
	control, remote, err := socketpair()
	if err != nil {
		return err
	}
	defer func() { _ = control.Close() }()
	defer func() { _ = remote.Close() }()
	log, err := os.OpenFile(m.supervisorLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()

	cmd := exec.Command(cfg.Supervisor[0], cfg.Supervisor[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{remote, lock} // controlFD, lockFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = remote.Close()
	defer func() {
		if err == nil {
			err = cmd.Process.Release()
			return
		}
		// Asked first, so that it can put things in order; an error means that
		// it is gone already.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		defer time.AfterFunc(killAfter, func() { _ = cmd.Process.Kill() }).Stop()
		_ = cmd.Wait()
	}()

	defer context.AfterFunc(ctx, func() { _ = control.Close() })()
	err = json.NewEncoder(control).Encode(spec{Machine: m, Listen: cfg.Listen, Vmlinuz: cfg.Data.Vmlinuz()})
	if err == nil {
		err = awaitReady(control, report)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// awaitReady reads a supervisor's events until the machine is up.
func awaitReady(control io.Reader, report progress.Func) error {
	events := json.NewDecoder(control)
	for {
		var e event
		err := events.Decode(&e)
		switch {
		case errors.Is(err, io.EOF):
			return errSilent
		case err != nil:
			return err
		case e.Error != "":
			return errors.New(e.Error)
		case e.Ready:
			return nil
		default:
			report.Step("%s", e.Step)
		}
	}
}

// evidence returns what was printed last by what is involved in err, to go below
// it.
func (m Machine) evidence(err error) string {
	logs := []struct{ what, path string }{{"console", m.ConsoleLog()}, {"emberd", m.DaemonLog()}}
	if errors.Is(err, errSilent) {
		logs = append(logs, struct{ what, path string }{"supervisor", m.supervisorLog()})
	}
	var text strings.Builder
	for _, log := range logs {
		if tail := logTail(log.path); tail != "" {
			_, _ = fmt.Fprintf(&text, "\n  %s:\n%s", log.what, tail)
		}
	}
	return text.String()
}
