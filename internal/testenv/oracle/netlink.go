package oracle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// takeRoutes lists the routes of every table. What the kernel counts and ages
// about a route is left out.
func (s *Snapshot) takeRoutes() error {
	routes, err := dump(unix.NETLINK_ROUTE, unix.RTM_GETROUTE, make([]byte, unix.SizeofRtMsg))
	if err != nil {
		return err
	}
	for _, m := range routes {
		if len(m) < unix.SizeofRtMsg {
			continue
		}
		if binary.NativeEndian.Uint32(m[8:])&unix.RTM_F_CLONED != 0 {
			continue // a cache entry, which comes and goes with packets
		}
		prefix, table, kind := m[1], m[4], m[7]
		at := attributes(m[unix.SizeofRtMsg:])
		to, _ := netip.AddrFromSlice(at[unix.RTA_DST]) // invalid for a default route
		via, _ := netip.AddrFromSlice(at[unix.RTA_GATEWAY])
		s.items[fmt.Sprintf("route %v/%d type %d table %d via %v link %x", to, prefix, kind, table, via, at[unix.RTA_OIF])] = true
	}
	return nil
}

// nfgenmsgSize is the size of what every message of nftables begins with: a
// family, a version, a number.
const nfgenmsgSize = 4

// The parts of an nftables ruleset: how each is asked for, and the attributes
// that tell one from another. Names and handles are what does not change with
// the packets that a rule counts.
var ruleset = []struct {
	what string
	get  uint16
	id   []uint16
}{
	{"table", unix.NFT_MSG_GETTABLE, []uint16{unix.NFTA_TABLE_NAME}},
	{"chain", unix.NFT_MSG_GETCHAIN, []uint16{unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME}},
	{"rule", unix.NFT_MSG_GETRULE, []uint16{unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_HANDLE}},
	{"set", unix.NFT_MSG_GETSET, []uint16{unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME}},
}

// takeRuleset lists the tables of nftables with their chains, rules and sets. A
// kernel without nftables has none.
func (s *Snapshot) takeRuleset() error {
	for _, part := range ruleset {
		found, err := dump(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|part.get, make([]byte, nfgenmsgSize))
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
			return nil // only root may ask, and only a kernel that has it answers
		case err != nil:
			return err
		}
		for _, m := range found {
			if len(m) < nfgenmsgSize {
				continue
			}
			at := attributes(m[nfgenmsgSize:])
			var names []string
			for _, id := range part.id {
				// A handle is a number, anything else a string that ends with a zero.
				names = append(names, strings.TrimSuffix(string(at[id]), "\x00"))
			}
			s.items[fmt.Sprintf("nftables %s %q of family %d", part.what, names, m[0])] = true
		}
	}
	return nil
}

// dump asks the kernel for all that it has of one kind, and returns the bodies
// of its answers.
func dump(protocol int, kind uint16, body []byte) ([][]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := send(fd, message(kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, body)); err != nil {
		return nil, err
	}
	var found [][]byte
	for {
		answers, err := receive(fd)
		if err != nil {
			return nil, err
		}
		for _, a := range answers {
			switch a.Header.Type {
			case unix.NLMSG_DONE:
				return found, nil
			case unix.NLMSG_ERROR:
				return nil, answerError(a)
			}
			found = append(found, a.Data)
		}
	}
}

// message is one request, with its header.
func message(kind, flags uint16, body []byte) []byte {
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, flags)
	m = append(m, make([]byte, 8)...) // sequence and port are the kernel's to fill in
	return append(m, body...)
}

func send(fd int, message []byte) error {
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	return nil
}

// receive returns the messages of one datagram. They do not share memory with
// the next one's.
func receive(fd int) ([]syscall.NetlinkMessage, error) {
	buf := make([]byte, 64<<10)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return syscall.ParseNetlinkMessage(buf[:n])
}

// answerError is what an error message says; nil for an acknowledgement.
func answerError(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return errors.New("netlink: an error without a number")
	}
	if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
		return fmt.Errorf("netlink: %w", syscall.Errno(errno))
	}
	return nil
}

// typeMask takes the flags off an attribute's type.
const typeMask = 0x3fff

// attributes splits the attributes of a message by type.
func attributes(b []byte) map[uint16][]byte {
	const header = 4
	at := map[uint16][]byte{}
	for len(b) >= header {
		size := int(binary.NativeEndian.Uint16(b))
		if size < header || size > len(b) {
			break
		}
		at[binary.NativeEndian.Uint16(b[2:])&typeMask] = b[header:size]
		b = b[min(len(b), (size+header-1)&^(header-1)):]
	}
	return at
}
