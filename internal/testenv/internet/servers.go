package internet

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Visit is a connection, request or datagram that reached a server.
type Visit struct {
	// At is where, and Over is "tcp", "udp", "tls" or "http".
	At   netip.AddrPort
	Over string
	// Host is who was asked for: of TLS the name in its first message, of HTTP the
	// Host header. URI is the request's.
	Host, URI string
}

// Ports where something answers, at every address of the internet.
var (
	// Web and Secure speak HTTP, the second in TLS.
	Web    = []uint16{80, 8080}
	Secure = []uint16{443, 8443}
	// Talkers speak first and repeat what they are told ([talk]).
	Talkers = []uint16{21, 22, 25, 5432, 6379, 9000, 50051}
	// Echoes repeat each datagram.
	Echoes = []uint16{123, 443, 4500, 9000}
)

// NameServerTLS is the port of DNS over TLS.
const NameServerTLS = 853

// Visits are those since Forget.
func (n *Internet) Visits() []Visit {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.visits)
}

func (n *Internet) note(v Visit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.visits = append(n.visits, v)
}

// Site has the requests for a host served by h.
func (n *Internet) Site(host string, h http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sites[host] = h
}

// serve starts every server, on the calling thread.
func (n *Internet) serve() error {
	for _, port := range append([]uint16{53}, Echoes...) {
		for _, network := range []string{"udp4", "udp6"} {
			conn, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
			if err != nil {
				return err
			}
			n.closers = append(n.closers, func() error { _ = conn.Close(); return nil }) // its server may have closed it
			if port == 53 {
				n.answer(&dns.Server{PacketConn: conn, Handler: n.nameServer("udp")})
			} else {
				n.running.Go(func() { n.echo(conn, network) })
			}
		}
	}
	pages := &http.Server{
		Handler: http.HandlerFunc(n.page), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	n.closers = append(n.closers, pages.Close)
	secure, named := n.CA.server(n.noteHello, "http/1.1"), n.CA.server(n.noteHello, "dot")
	return errors.Join(
		n.listen(Web, func(l net.Listener) { n.running.Go(func() { _ = pages.Serve(l) }) }),
		n.listen(Secure, func(l net.Listener) { n.running.Go(func() { _ = pages.Serve(tls.NewListener(l, secure)) }) }),
		n.listen(Talkers, func(l net.Listener) { n.running.Go(func() { n.talkTo(l) }) }),
		n.listen([]uint16{53}, func(l net.Listener) { n.answer(&dns.Server{Listener: l, Handler: n.nameServer("tcp")}) }),
		n.listen([]uint16{NameServerTLS}, func(l net.Listener) {
			n.answer(&dns.Server{Listener: tls.NewListener(l, named), Handler: n.nameServer("tls")})
		}),
	)
}

// listen has start serve what listens on some ports, and notes who connects.
func (n *Internet) listen(ports []uint16, start func(net.Listener)) error {
	for _, port := range ports {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(int(port)))
		if err != nil {
			return err
		}
		n.closers = append(n.closers, func() error { _ = l.Close(); return nil }) // its server may have closed it
		start(&notingListener{Listener: l, n: n})
	}
	return nil
}

// answer runs a name server.
func (n *Internet) answer(s *dns.Server) {
	n.closers = append(n.closers, func() error { _ = s.Shutdown(); return nil }) // it may not have begun
	n.running.Go(func() { _ = s.ActivateAndServe() })
}

func (n *Internet) noteHello(hello *tls.ClientHelloInfo) {
	n.note(Visit{At: localAddr(hello.Conn), Over: "tls", Host: hello.ServerName})
}

// notingListener notes each connection.
type notingListener struct {
	net.Listener
	n *Internet
}

func (l *notingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.n.note(Visit{At: localAddr(conn), Over: "tcp"})
	}
	return conn, err
}

func localAddr(c net.Conn) netip.AddrPort {
	at, _ := netip.ParseAddrPort(c.LocalAddr().String())
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

type connKey struct{}

// page serves every request: who asked for what, where, in one line; or a site of
// the test's.
func (n *Internet) page(w http.ResponseWriter, r *http.Request) {
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	at := localAddr(conn)
	n.note(Visit{At: at, Over: "http", Host: r.Host, URI: r.RequestURI})
	n.mu.Lock()
	site := n.sites[strings.ToLower(r.Host)]
	n.mu.Unlock()
	switch {
	case site != nil:
		site.ServeHTTP(w, r)
	case r.URL.Path == "/dns-query":
		n.dnsOverHTTPS(w, r)
	case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		n.upgrade(w)
	case r.URL.Path == "/bytes":
		count, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		_, _ = io.CopyN(w, zeros{}, count)
	default:
		w.Header().Set("Content-Type", "text/plain")
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		_, _ = fmt.Fprintf(w, "%s %s of %s at %s with %d bytes, forwarded %q\n", r.Method, r.URL.Path, r.Host, at, len(body), r.Header["X-Forwarded-For"]) //nolint:gosec // no browser reads it
	}
}

// upgrade repeats what it is told on the connection of a request.
func (n *Internet) upgrade(w http.ResponseWriter) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return
	}
	conn, rw, err := hijacker.Hijack()
	if err != nil {
		return
	}
	defer n.closeWith(conn)()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	_, _ = io.Copy(conn, rw)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// talkTo serves connections to ports that are no web server's.
func (n *Internet) talkTo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		n.running.Go(func() { n.talk(conn) })
	}
}

// talk says where it is, and then does what it is told, line by line: "send N"
// has it send N bytes, "take N" read as many and say so, "bye" close. Anything
// else is repeated. The internet's end ends it.
func (n *Internet) talk(conn net.Conn) {
	defer n.closeWith(conn)()
	if _, err := fmt.Fprintf(conn, "hello from %s\n", localAddr(conn)); err != nil {
		return
	}
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		var what string
		var count int64
		_, _ = fmt.Sscan(line, &what, &count)
		switch what {
		case "send":
			_, err = io.CopyN(conn, zeros{}, count)
		case "take":
			if _, err = io.CopyN(io.Discard, in, count); err == nil {
				_, err = fmt.Fprintf(conn, "took %d\n", count)
			}
		case "bye":
			return
		default:
			_, err = io.WriteString(conn, line)
		}
		if err != nil {
			return
		}
	}
}

// closeWith has the internet's end close a connection, unless the function that it
// returns did before.
func (n *Internet) closeWith(conn net.Conn) func() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.talking[conn] = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.talking, conn)
		_ = conn.Close()
	}
}

// echo sends each datagram back from where it was sent to.
func (n *Internet) echo(conn *net.UDPConn, network string) {
	port := localPort(conn)
	buf := make([]byte, 64<<10)
	if network == "udp6" {
		p := ipv6.NewPacketConn(conn)
		_ = p.SetControlMessage(ipv6.FlagDst, true)
		for {
			size, cm, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			n.noteDatagram(cm.Dst, port)
			_, _ = p.WriteTo(buf[:size], &ipv6.ControlMessage{Src: cm.Dst}, from)
		}
	}
	p := ipv4.NewPacketConn(conn)
	_ = p.SetControlMessage(ipv4.FlagDst, true)
	for {
		size, cm, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		n.noteDatagram(cm.Dst, port)
		_, _ = p.WriteTo(buf[:size], &ipv4.ControlMessage{Src: cm.Dst}, from)
	}
}

func localPort(conn *net.UDPConn) uint16 {
	at, _ := netip.ParseAddrPort(conn.LocalAddr().String())
	return at.Port()
}

func (n *Internet) noteDatagram(to net.IP, port uint16) {
	addr, _ := netip.AddrFromSlice(to)
	n.note(Visit{At: netip.AddrPortFrom(addr.Unmap(), port), Over: "udp"})
}
