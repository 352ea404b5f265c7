package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// maxSocketPath is how long Linux lets the path of a Unix socket be.
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

// listenUnix opens the Unix socket at path. What an emberd left there that was
// killed is replaced; what somebody listens on is not.
//
// The directory and the socket are for the daemon's own user. Where others may
// come in as well, they have to be able to get that far: then it is
// [peerCheck] alone that keeps out the rest.
func listenUnix(cfg Config, in *inherited) (net.Listener, error) {
	path := cfg.Socket
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %s: the path is longer than the %d bytes that a socket's may have", path, maxSocketPath)
	}
	dir, mode := fs.FileMode(0o700), fs.FileMode(0o600)
	if len(cfg.SocketUIDs) > 0 {
		dir, mode = 0o711, 0o666
	}
	err := os.MkdirAll(filepath.Dir(path), dir)
	// Only the run directory is ours to open.
	if err == nil && len(cfg.SocketUIDs) > 0 && filepath.Dir(path) == filepath.Clean(string(cfg.RunDir)) {
		err = os.Chmod(string(cfg.RunDir), dir)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, fresh, err := openUnix(path, in)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if fresh {
		in.keep(storedUnix, l)
	}
	return l, nil
}

// openUnix returns the listener at path that was passed, or a fresh one. A stored
// one whose path somebody removed is of no use to anybody.
func openUnix(path string, in *inherited) (l net.Listener, fresh bool, err error) {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		in.drop(storedUnix)
	}
	if l = in.take("unix", path); l != nil {
		return l, false, nil
	}
	in.drop(storedUnix)
	if err := removeStale(path); err != nil {
		return nil, false, err
	}
	l, err = net.Listen("unix", path)
	return l, true, err
}

// removeStale removes the socket at path if nobody listens on it.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("it is there, and no socket")
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return errors.New("somebody listens there already")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// peerCheck returns what is asked of those who connect to a Unix socket: to be
// root, the daemon's own user or one of uids. The kernel knows.
func peerCheck(uids []uint) func(net.Conn) error {
	return func(conn net.Conn) error {
		raw, err := conn.(*net.UnixConn).SyscallConn()
		if err != nil {
			return fmt.Errorf("peer of the socket: %w", err)
		}
		var cred *unix.Ucred
		var credErr error
		err = raw.Control(func(fd uintptr) {
			cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		})
		if err := errors.Join(err, credErr); err != nil {
			return fmt.Errorf("peer of the socket: %w", err)
		}
		if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() || slices.Contains(uids, uint(cred.Uid)) {
			return nil
		}
		return fmt.Errorf("peer of the socket: user %d", cred.Uid)
	}
}
