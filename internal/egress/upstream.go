package egress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// ednsSize is what fits into a packet everywhere.
	ednsSize = 1232
	// maxUpstream bounds an answer that comes by TCP; of it, [maxAddrs] are taken.
	maxUpstream    = 16 << 10
	lookupTimeout  = 5 * time.Second
	maxResolvers   = 3
	maxStray       = 16 // datagrams that are no answer to the question
	maxCNAMEs      = 16
	attemptTimeout = 2 * time.Second
)

var (
	errNoResolver = errors.New("the host has no resolver")
	errNoAnswer   = errors.New("there is no answer to the question")
	errByTCP      = errors.New("the answer has to be asked for by TCP")
)

// ask asks the host's resolvers for the addresses of a name, one after the other
// until one knows: that there are some, none, or no such name.
func (r *resolver) ask(ctx context.Context, name string, qtype uint16) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	servers := r.resolvers[:min(len(r.resolvers), maxResolvers)]
	err := errNoResolver
	for i, server := range servers {
		limit := lookupTimeout // which is over with all of it
		if i < len(servers)-1 {
			limit = attemptTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		var m *dns.Msg
		m, err = r.exchange(ctx, server, dns.Fqdn(name), qtype)
		cancel()
		switch {
		case err != nil:
		case m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError:
			got := answer{rcode: m.Rcode}
			got.addrs, got.ttl = addresses(m, qtype)
			return got, nil
		default:
			err = fmt.Errorf("resolver %s says %s", server, dns.RcodeToString[m.Rcode])
		}
	}
	return answer{}, err
}

// exchange asks one resolver, by UDP and, where that does not do, by TCP.
func (r *resolver) exchange(ctx context.Context, server netip.AddrPort, name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(mixCase(name), qtype)
	q.SetEdns0(ednsSize, false)
	m, err := r.exchangeBy(ctx, "udp", server, q)
	if errors.Is(err, errByTCP) {
		m, err = r.exchangeBy(ctx, "tcp", server, q)
	}
	return m, err
}

func (r *resolver) exchangeBy(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	conn, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		if err := writeFramed(conn, q); err != nil {
			return nil, err
		}
		b, err := readFramed(conn, maxUpstream)
		if err != nil {
			return nil, err
		}
		m := new(dns.Msg)
		if m.Unpack(b) != nil || !answersTo(m, q) {
			return nil, errNoAnswer
		}
		return m, nil
	}
	b, err := q.Pack()
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	return awaitAnswer(conn, q)
}

// awaitAnswer reads datagrams until one answers q. Others may be anybody's.
func awaitAnswer(conn net.Conn, q *dns.Msg) (*dns.Msg, error) {
	buf := make([]byte, 4096)
	for range maxStray {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		m := new(dns.Msg)
		switch {
		case m.Unpack(buf[:n]) != nil && !m.Truncated || !answersTo(m, q):
		case m.Truncated, m.Question[0].Name != q.Question[0].Name:
			// Some resolvers do not keep the case, which is there to make answers hard
			// to forge; those by TCP are hard enough.
			return nil, errByTCP
		default:
			return m, nil
		}
	}
	return nil, errNoAnswer
}

// answersTo tells whether m is a reply to q.
func answersTo(m, q *dns.Msg) bool {
	if !m.Response || m.Id != q.Id || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		return false
	}
	got, want := m.Question[0], q.Question[0]
	return got.Qtype == want.Qtype && got.Qclass == want.Qclass && strings.EqualFold(got.Name, want.Name)
}

// addresses returns those that a reply has for its question, which may be behind a
// chain of other names, and for how long all of it holds.
func addresses(m *dns.Msg, qtype uint16) (addrs []netip.Addr, ttl time.Duration) {
	owner := strings.ToLower(m.Question[0].Name)
	seconds := uint32(maxTTL / time.Second)
	aliases := map[string]*dns.CNAME{}
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok {
			aliases[strings.ToLower(c.Hdr.Name)] = c
		}
	}
	for range maxCNAMEs {
		c := aliases[owner]
		if c == nil {
			break
		}
		owner, seconds = strings.ToLower(c.Target), min(seconds, c.Hdr.Ttl)
	}
	for _, rr := range m.Answer {
		var addr netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			// As it is: one that holds an IPv4 address is forbidden.
			addr, _ = netip.AddrFromSlice(rr.AAAA)
		}
		h := rr.Header()
		if !addr.IsValid() || h.Rrtype != qtype || h.Class != dns.ClassINET || strings.ToLower(h.Name) != owner || slices.Contains(addrs, addr) {
			continue
		}
		if addrs, seconds = append(addrs, addr), min(seconds, h.Ttl); len(addrs) == maxAddrs {
			break
		}
	}
	return addrs, time.Duration(seconds) * time.Second
}

// mixCase returns a name with the case of its letters by chance, which whoever
// forges an answer has to guess.
func mixCase(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && rand.Uint32()&1 == 0 { //nolint:gosec // math/rand/v2 reads ChaCha8, seeded by the kernel
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}
