package internet

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Flow is what packets have in common that the host sent to one place.
type Flow struct {
	// Protocol is "tcp", "udp", "icmp", or the number of another.
	Protocol string
	// To has port 0 where there are none.
	To netip.AddrPort
}

func (f Flow) String() string { return f.Protocol + " " + f.To.String() }

// wire passes packets on and counts those that go to the internet.
type wire struct {
	mu   sync.Mutex
	sent map[Flow]int
}

// pass moves packets until either end is closed.
func (w *wire) pass(dst, src *os.File, counted bool) {
	buf := make([]byte, mtu)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if flow, ok := parse(buf[:n]); ok && counted {
			w.count(flow)
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (w *wire) count(f Flow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sent == nil {
		w.sent = map[Flow]int{}
	}
	w.sent[f]++
}

// Sent is how many packets the host has sent to each place since Forget.
func (n *Internet) Sent() map[Flow]int {
	n.wire.mu.Lock()
	defer n.wire.mu.Unlock()
	return maps.Clone(n.wire.sent)
}

// Forget has Sent, Asked and Visits begin anew.
func (n *Internet) Forget() {
	n.wire.mu.Lock()
	clear(n.wire.sent)
	n.wire.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked, n.visits, n.times = nil, nil, map[string]int{}
}

// parse tells where a packet goes. It is for packets of this host's kernel, which
// have no options before what is looked at.
func parse(p []byte) (Flow, bool) {
	if len(p) < 20 {
		return Flow{}, false
	}
	var proto byte
	var to netip.Addr
	var rest []byte
	switch p[0] >> 4 {
	case 4:
		proto, to = p[9], netip.AddrFrom4([4]byte(p[16:20]))
		rest = p[min(len(p), int(p[0]&15)*4):]
	case 6:
		if len(p) < 40 {
			return Flow{}, false
		}
		proto, to, rest = p[6], netip.AddrFrom16([16]byte(p[24:40])), p[40:]
	default:
		return Flow{}, false
	}
	f := Flow{Protocol: fmt.Sprint(proto)}
	var port uint16
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		f.Protocol = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[proto]
		if len(rest) >= 4 {
			port = binary.BigEndian.Uint16(rest[2:])
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		f.Protocol = "icmp"
	}
	f.To = netip.AddrPortFrom(to, port)
	return f, true
}
