package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"

	"github.com/emberd/emberd/internal/x/systemd"
)

// The names by which the service manager keeps the daemon's listeners for the
// daemon after it. Connections that come between the two wait in them.
const (
	storedTCP  = "emberd-listen"
	storedUnix = "emberd-socket"
)

// inherited is the listeners that a daemon is passed when it starts: those that
// the one before it stored, and those of a socket unit.
type inherited struct {
	manager *systemd.Manager
	log     *slog.Logger
	left    []passed // nobody has asked for them yet
}

type passed struct {
	name string
	net.Listener
}

// inherit takes what manager passes. The caller calls close.
func inherit(manager *systemd.Manager, log *slog.Logger) (*inherited, error) {
	in := &inherited{manager: manager, log: log}
	var errs []error
	for _, s := range manager.Sockets() {
		l, err := net.FileListener(s.File)
		if err != nil {
			errs = append(errs, fmt.Errorf("the socket %s that systemd passed: %w", s.Name, err))
		} else {
			in.left = append(in.left, passed{s.Name, l})
		}
		errs = append(errs, s.File.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, in.close())
	}
	return in, nil
}

// take returns the listener at an address, nil if none was passed.
func (in *inherited) take(network, address string) net.Listener {
	for i, p := range in.left {
		if p.Addr().Network() == network && sameAddress(p.Addr(), address) {
			in.left = append(in.left[:i], in.left[i+1:]...)
			return p.Listener
		}
	}
	return nil
}

// sameAddress tells whether a listener at addr is what an operator calls want.
func sameAddress(addr net.Addr, want string) bool {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String() == want
	}
	named, err := net.ResolveTCPAddr("tcp", want)
	if err != nil || named.Port != tcp.Port {
		return false
	}
	if len(named.IP) == 0 {
		named.IP = net.IPv6unspecified
	}
	return named.IP.Equal(tcp.IP) && named.Zone == tcp.Zone
}

// drop closes a stored listener, and has the manager forget it, so that another
// one can be opened in its place.
func (in *inherited) drop(name string) {
	for i := 0; i < len(in.left); i++ {
		if p := in.left[i]; p.name == name {
			in.left = append(in.left[:i], in.left[i+1:]...)
			i--
			if err := errors.Join(p.Close(), in.manager.Forget(name)); err != nil {
				in.log.Warn("a listener of the daemon before this one stays open", "addr", p.Addr().String(), "err", err)
			}
		}
	}
}

// keep has the manager store a listener that was opened now.
func (in *inherited) keep(name string, l net.Listener) {
	if !in.manager.Listens() {
		return
	}
	if local, ok := l.(*net.UnixListener); ok {
		local.SetUnlinkOnClose(false)
	}
	if err := in.manager.Store(name, l.(syscall.Conn)); err != nil {
		in.log.Warn("connections will be refused while emberd restarts", "addr", l.Addr().String(), "err", err)
	}
}

// unwanted returns an error if a socket unit passed a listener that the settings
// do not name. Who connects there would wait for ever, and to serve it would be
// to serve what the settings close.
func (in *inherited) unwanted() error {
	for _, p := range in.left {
		return fmt.Errorf("systemd passed a socket at %s (%s), which neither listen nor socket names; "+
			"make the socket unit and the settings agree", p.Addr(), p.name)
	}
	return nil
}

// close closes what nobody asked for.
func (in *inherited) close() error {
	var errs []error
	for _, p := range in.left {
		if err := p.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	in.left = nil
	return errors.Join(errs...)
}
