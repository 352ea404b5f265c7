// Package machine is what PID 1 does when it runs the machine, the emulated KVM
// host, instead of a sandbox: it mounts the data disk, serves the agent protocol
// on the virtio-serial port, and powers off in good order.
//
// The one idea is that the machine has no will of its own. emberd, too, is
// started from outside, by whoever supervises the machine, so that its end and
// its log are known there. The port is the machine's only way in, and when the
// other side goes away the machine has no reason to be up any more.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dataDevice = "/dev/vdb"
	dataDir    = "/var/lib/emberd"
	// execDir is where the host puts programs that it wants to run.
	execDir = "/run/emberd-exec"
	// portName is what QEMU calls the port.
	portName = "emberd.agent"
)

// waitLimit bounds the wait for each device.
const waitLimit = 30 * time.Second

// poll is how often a device is looked for. There is no udev to tell.
const poll = 10 * time.Millisecond

// Server serves one connection from the host.
type Server interface {
	ServeConn(ctx context.Context, conn io.ReadWriteCloser) error
}

// Run runs the machine from its mounted root on, until the host goes away, or
// ctx ends and every program has been asked to end too. The caller then calls
// [PowerOff].
func Run(ctx context.Context, srv Server, log *slog.Logger) error {
	if err := mountData(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(execDir, 0o700); err != nil {
		return fmt.Errorf("make directory for programs: %w", err)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		log.Warn("no KVM in the machine", "err", err)
	}
	port, err := openPort(ctx)
	if err != nil {
		return err
	}
	// Programs are asked while their output still has somewhere to go.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		endPrograms(syscall.SIGTERM)
		stop()
	})()
	if err := srv.ServeConn(serving, port); err != nil {
		return fmt.Errorf("serve %s: %w", portName, err)
	}
	return nil
}

// mountData mounts the data disk and makes root its owner: an image that an
// ordinary user built holds that user's files.
func mountData(ctx context.Context) error {
	err := await(ctx, func() (bool, error) {
		_, err := os.Stat(dataDevice)
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", dataDevice, err)
	}
	if err := unix.Mount(dataDevice, dataDir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", dataDevice, dataDir, err)
	}
	for _, dir := range []string{"firecracker", "kernel", "packs"} {
		err := filepath.WalkDir(filepath.Join(dataDir, dir), func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, 0, 0)) //nolint:gosec // nothing else runs yet that could swap a path
		})
		if err != nil {
			return fmt.Errorf("own %s: %w", dir, err)
		}
	}
	return nil
}

// openPort opens the virtio-serial port, once the host has opened its end:
// until then reading it gives an end of file.
func openPort(ctx context.Context) (*os.File, error) {
	var port *os.File
	err := await(ctx, func() (ok bool, err error) {
		if port == nil {
			device, err := findPort()
			if device == "" || err != nil {
				return false, err
			}
			if port, err = os.OpenFile(device, os.O_RDWR, 0); err != nil {
				return false, err
			}
		}
		return connected(port)
	})
	if err != nil {
		if port != nil {
			_ = port.Close()
		}
		return nil, fmt.Errorf("open port %s: %w", portName, err)
	}
	return port, nil
}

// findPort returns the device of the port, or "" if it is not there yet.
func findPort() (string, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, file := range names {
		name, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(name)) == portName {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(file))), nil
		}
	}
	return "", nil
}

// connected reports whether the host has its end of port open.
func connected(port *os.File) (bool, error) {
	raw, err := port.SyscallConn()
	if err != nil {
		return false, err
	}
	fds := []unix.PollFd{{Events: unix.POLLIN}}
	var perr error
	if err := raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		_, perr = unix.Poll(fds, 0)
	}); err != nil {
		return false, err
	}
	if perr != nil && !errors.Is(perr, unix.EINTR) {
		return false, perr
	}
	return fds[0].Revents&unix.POLLHUP == 0, nil
}

// await calls ready until it says yes, fails, or [waitLimit] is over.
func await(ctx context.Context, ready func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		ok, err := ready()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
