package egress

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is the network namespace of a VMM. It has no name, and is held open
// by a file, which keeps it when the VMM is gone: so the file is closed with all
// else.
type namespace struct{ file *os.File }

// openNamespace opens the namespace of a process, which the caller knows to be
// the VMM. It refuses the daemon's own: a VMM that was in it could not be given an
// interface of its own there.
func openNamespace(pid int) (*namespace, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	var its, own unix.Stat_t
	err = errors.Join(unix.Fstat(int(file.Fd()), &its), unix.Stat("/proc/self/ns/net", &own))
	if err == nil && its.Ino == own.Ino && its.Dev == own.Dev {
		err = fmt.Errorf("process %d has no network namespace of its own", pid)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace: %w", err), file.Close())
	}
	return &namespace{file}, nil
}

// do runs f in the namespace: the sockets that it opens, and the settings that it
// reads and writes, are those of the namespace. f must not start goroutines that
// do such things.
//
// The thread is brought back. One that cannot be is not used again: it stays
// locked to a goroutine that ends, so no other one can find itself in a namespace
// that it did not ask for. That alone would not do, as the first thread of a
// process does not end with its goroutine: it would hold the namespace for ever.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := n.enter(f)
		if !errors.Is(err, errAstray) {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// errAstray is that a thread did not come back.
var errAstray = errors.New("leave network namespace")

// enter is do on a thread that is locked.
func (n *namespace) enter(f func() error) error {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer func() { _ = home.Close() }()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", errAstray, back))
	}
	return err
}

func (n *namespace) close() error { return n.file.Close() }

// setting is a value below /proc/sys/net.
type setting struct{ name, value string }

// apply writes settings of the namespace that the calling thread is in.
func apply(settings []setting) error {
	for _, s := range settings {
		path := filepath.Join("/proc/sys/net", s.name)
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("set %s to %s: %w", s.name, s.value, err)
		}
	}
	return nil
}

// settings are those of the namespace before the interface is made. A new
// namespace has some of the host's.
func settings(ipv6 bool) []setting {
	// A refusal is told each time: the guest has the interface to itself, and the rate
	// of its packets is bounded.
	all := []setting{{"ipv4/ip_forward", "0"}, {"ipv4/icmp_ratelimit", "0"}}
	for _, conf := range []string{"all", "default"} {
		for _, name := range []string{"rp_filter", "accept_redirects", "send_redirects", "accept_source_route", "route_localnet", "accept_local"} {
			// The source is looked at by the rules, and a reverse path filter would
			// not know the way to what is only relayed.
			all = append(all, setting{"ipv4/conf/" + conf + "/" + name, "0"})
		}
	}
	for _, conf := range []string{"all", "default"} {
		if !ipv6 {
			// Not there where the kernel has no IPv6.
			if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
				all = append(all, setting{"ipv6/conf/" + conf + "/disable_ipv6", "1"})
			}
			continue
		}
		all = append(all, setting{"ipv6/conf/" + conf + "/disable_ipv6", "0"})
		for _, name := range []string{"forwarding", "accept_ra", "autoconf", "accept_dad", "dad_transmits", "router_solicitations", "accept_redirects"} {
			all = append(all, setting{"ipv6/conf/" + conf + "/" + name, "0"})
		}
	}
	if ipv6 {
		all = append(all, setting{"ipv6/icmp/ratelimit", "0"})
		// No address that nobody gave it.
		all = append(all, setting{"ipv6/conf/default/addr_gen_mode", "1"})
	}
	return all
}
