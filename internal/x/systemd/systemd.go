// Package systemd is a service's side of what it and the service manager that
// started it have to say to each other.
//
// There are three things: the service tells how it stands (sd_notify), it is
// given sockets that somebody else listens on already (socket activation), and
// it gives sockets away to have them back when it is started again (the file
// descriptor store). The last two keep connections waiting over a restart that
// would be refused.
//
// A nil *Manager is that of a process which no service manager started: it is
// told everything and gives nothing. The package knows no policy, and a message
// that cannot be sent is an error for the caller to log, never a reason to stop.
package systemd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// firstSocket is the file descriptor of the first socket that is passed.
const firstSocket = 3

// Manager is the service manager that started this process. Its methods may be
// called by any number of goroutines.
type Manager struct {
	address  string // "" if it wants to hear nothing; @… is abstract
	watchdog time.Duration
	sockets  []Socket
}

// Socket is a listening socket that was passed to this process.
type Socket struct {
	// Name is that of the unit it comes from, or the one it was stored by.
	Name string
	// File is the caller's to close.
	File *os.File
}

// At returns the manager that listens for messages at address, expects to be
// told of life within watchdog, 0 for never, and has passed sockets.
func At(address string, watchdog time.Duration, sockets ...Socket) *Manager {
	return &Manager{address: address, watchdog: watchdog, sockets: sockets}
}

// FromEnvironment returns the manager that started this process, nil if none
// did. What is in the environment about it is removed, and sockets are closed on
// exec, as neither is meant for programs that this one starts. It is called once.
func FromEnvironment() (*Manager, error) {
	take := func(name string) string {
		value := os.Getenv(name)
		_ = os.Unsetenv(name) // fails for no name that has no "=" in it
		return value
	}
	self := strconv.Itoa(os.Getpid())
	address := take("NOTIFY_SOCKET")
	usec, forPID := take("WATCHDOG_USEC"), take("WATCHDOG_PID")
	var watchdog time.Duration
	if usec != "" && (forPID == "" || forPID == self) {
		n, err := strconv.ParseUint(usec, 10, 48)
		if err != nil {
			return nil, fmt.Errorf("environment variable WATCHDOG_USEC: %w", err)
		}
		watchdog = time.Duration(n) * time.Microsecond
	}
	listenPID, count, names := take("LISTEN_PID"), take("LISTEN_FDS"), take("LISTEN_FDNAMES")
	var sockets []Socket
	if listenPID == self {
		n, err := strconv.ParseUint(count, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("environment variable LISTEN_FDS: %w", err)
		}
		sockets = passed(int(n), strings.Split(names, ":"))
	}
	if address == "" && sockets == nil {
		return nil, nil
	}
	return At(address, watchdog, sockets...), nil
}

// passed returns the n sockets that this process was started with.
func passed(n int, names []string) []Socket {
	var all []Socket
	for i := range n {
		fd, name := firstSocket+i, "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		unix.CloseOnExec(fd)
		all = append(all, Socket{name, os.NewFile(uintptr(fd), name)})
	}
	return all
}

// Sockets are those that were passed.
func (m *Manager) Sockets() []Socket {
	if m == nil {
		return nil
	}
	return m.sockets
}

// Watchdog is the time within which the manager expects to hear "WATCHDOG=1"
// again, 0 if it does not.
func (m *Manager) Watchdog() time.Duration {
	if m == nil {
		return 0
	}
	return m.watchdog
}

// Notify tells the manager all of states, as NAME=VALUE.
func (m *Manager) Notify(states ...string) error { return m.send(nil, states...) }

// Store has the manager keep the socket under a name and pass it to the next
// process of this service. The name tells sockets of one service apart.
func (m *Manager) Store(name string, socket syscall.Conn) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("store socket %s: %w", name, err)
	}
	var sent error
	closed := raw.Control(func(fd uintptr) {
		sent = m.send(unix.UnixRights(int(fd)), "FDSTORE=1", "FDNAME="+name)
	})
	return errors.Join(closed, sent)
}

// Forget has the manager close what is stored under name.
func (m *Manager) Forget(name string) error { return m.Notify("FDSTOREREMOVE=1", "FDNAME="+name) }

// Listens tells whether the manager can be told anything.
func (m *Manager) Listens() bool { return m != nil && m.address != "" }

// send sends one message. Each has a socket of its own, as there are few.
func (m *Manager) send(rights []byte, states ...string) error {
	if !m.Listens() {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: sendTimeout}); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	err = unix.Sendmsg(fd, []byte(strings.Join(states, "\n")), rights, &unix.SockaddrUnix{Name: m.address}, unix.MSG_NOSIGNAL)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// sendTimeout is how many seconds a manager may be too busy to take a message.
const sendTimeout = 5
