package egress

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/sandbox"
)

// refusal is the denial of one connection.
func refusal(reason sandbox.EgressReason, name, to string, rule *sandbox.EgressRule) sandbox.EgressDenial {
	a := netip.MustParseAddrPort(to)
	return sandbox.EgressDenial{Host: name, Addr: a.Addr(), Port: a.Port(), Protocol: sandbox.TCP, Reason: reason, Rule: rule, Count: 1}
}

// forAddr and forHost are the rules that were missing.
func forAddr(to string) *sandbox.EgressRule {
	return addrRule(netip.MustParseAddrPort(to), sandbox.TCP)
}

func forHost(name string, port uint16) *sandbox.EgressRule {
	return hostRule(name, sandbox.TCP, port)
}

// wantReset reads until the connection breaks off.
func wantReset(t *testing.T, c io.Reader) {
	t.Helper()
	if b, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) || len(b) > 0 {
		t.Errorf("read %q, error %v; want a reset", b, err)
	}
}

func TestTCPByAddress(t *testing.T) {
	for _, tt := range []struct {
		name    string
		rules   []sandbox.EgressRule
		to      string
		resolve string
		pass    bool
		denied  []sandbox.EgressDenial
	}{
		{name: "range", rules: []sandbox.EgressRule{inCIDR("203.0.113.0/24", 5432)}, to: "203.0.113.5:5432", pass: true},
		{name: "range, port 443 without TLS", rules: []sandbox.EgressRule{inCIDR("203.0.113.0/24")}, to: "203.0.113.5:443", pass: true},
		{name: "range, other port", rules: []sandbox.EgressRule{inCIDR("203.0.113.0/24", 5432)}, to: "203.0.113.5:5433",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedNoRule, "", "203.0.113.5:5433", forAddr("203.0.113.5:5433"))}},
		{name: "range, other protocol", rules: []sandbox.EgressRule{udpRule(inCIDR("203.0.113.0/24", 5432))}, to: "203.0.113.5:5432",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedNoRule, "", "203.0.113.5:5432", forAddr("203.0.113.5:5432"))}},
		{name: "outside of the range", rules: []sandbox.EgressRule{inCIDR("203.0.113.0/29")}, to: "203.0.113.8:22",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedNoRule, "", "203.0.113.8:22", forAddr("203.0.113.8:22"))}},
		{name: "no rules", to: "203.0.113.8:443",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedUnnamed, "", "203.0.113.8:443", forAddr("203.0.113.8:443"))}},
		{name: "IPv6", rules: []sandbox.EgressRule{inCIDR("2606:4700::/32")}, to: "[2606:4700::1]:22", pass: true},
		{name: "private", rules: []sandbox.EgressRule{inCIDR("203.0.113.0/24")}, to: "10.0.0.1:22",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedRange, "", "10.0.0.1:22", nil)}},
		{name: "metadata", rules: []sandbox.EgressRule{inCIDR("203.0.113.0/24")}, to: "169.254.169.254:80",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedRange, "", "169.254.169.254:80", nil)}},
		{name: "IPv4 in IPv6", rules: []sandbox.EgressRule{inCIDR("203.0.113.0/24")}, to: "[::ffff:203.0.113.5]:22",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedRange, "", "[::ffff:203.0.113.5]:22", nil)}},
		{name: "the host's own", rules: []sandbox.EgressRule{inCIDR("198.51.100.0/24")}, to: "198.51.100.99:22",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedRange, "", "198.51.100.99:22", nil)}},
		{name: "name at another port", rules: []sandbox.EgressRule{forName("db.example.org", 5432)}, to: "203.0.113.5:5432", resolve: "db.example.org", pass: true},
		{name: "name that is resolved by the relay", rules: []sandbox.EgressRule{forName("db.example.org", 5432)}, to: "203.0.113.5:5432", pass: true},
		{name: "name, port of another", rules: []sandbox.EgressRule{forName("db.example.org", 5432)}, to: "203.0.113.5:22", resolve: "db.example.org",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedNoRule, "db.example.org", "203.0.113.5:22", forHost("db.example.org", 22))}},
		{name: "neighbour's port", rules: []sandbox.EgressRule{forName("db.example.org", 5432), forName("other.example.org", 22)}, to: "203.0.113.5:22", resolve: "db.example.org",
			denied: []sandbox.EgressDenial{refusal(sandbox.DeniedNoRule, "db.example.org", "203.0.113.5:22", forHost("db.example.org", 22))}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.rules...)
			w.resolves(zone{"db.example.org.": {"203.0.113.5"}, "other.example.org.": {"203.0.113.6"}})
			w.server(tt.to, echoTCP)
			if tt.resolve != "" {
				w.resolve(tt.resolve, dns.TypeA)
			}
			c := w.connectTo(tt.to)
			_, _ = io.WriteString(c, "hello")
			if !tt.pass {
				if strings.HasSuffix(tt.to, ":443") {
					wantAlert(t, c)
				} else {
					wantReset(t, c)
				}
				if got := w.connected(); len(got) > 0 {
					t.Errorf("the relay connected to %v", got)
				}
				w.wantDenials(tt.denied...)
				return
			}
			_ = c.CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
				t.Errorf("read %q, error %v", got, err)
			}
			w.wantDenials()
		})
	}
}

// Each side can end while the other goes on.
func TestTCPHalfClose(t *testing.T) {
	const to = "203.0.113.5:22"
	w := newWorld(t, inCIDR("203.0.113.0/24"))
	w.server(to, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "banner")
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		w.at("203.0.113.6:22", string(b))
	})
	c := w.connectTo(to)
	if got, err := io.ReadAll(c); err != nil || string(got) != "banner" {
		t.Fatalf("read %q, error %v", got, err)
	}
	_, _ = io.WriteString(c, "after the end")
	_ = c.CloseWrite()
	eventually(t, "what came after the end", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.servers[netip.MustParseAddrPort("203.0.113.6:22")] == "after the end"
	})
	eventually(t, "the end of the flow", func() bool { return w.flows() == 0 })
}

// flows returns how many there are.
func (w *world) flows() int {
	w.user.relay.mu.Lock()
	defer w.user.relay.mu.Unlock()
	return len(w.user.relay.flows)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// What breaks on one side breaks on the other.
func TestTCPBreaks(t *testing.T) {
	w := newWorld(t, inCIDR("203.0.113.0/24"))
	gone := make(chan error, 1)
	w.server("203.0.113.5:22", func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 1)); _ = c.SetLinger(0) })
	w.server("203.0.113.6:22", func(c *net.TCPConn) { _, err := io.ReadAll(c); gone <- err })
	t.Run("no server", func(t *testing.T) { wantReset(t, w.connectTo("203.0.113.4:22")) })
	t.Run("server resets", func(t *testing.T) {
		c := w.connectTo("203.0.113.5:22")
		_, _ = c.Write([]byte("x"))
		wantReset(t, c)
	})
	t.Run("guest resets", func(t *testing.T) {
		c := w.connectTo("203.0.113.6:22")
		eventually(t, "the connection", func() bool { return slices.Contains(w.connected(), netip.MustParseAddrPort("203.0.113.6:22")) })
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := <-gone; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server sees %v, want a reset", err)
		}
	})
	w.wantDenials()
}

// clientHello returns the records of a ClientHello that crypto/tls makes.
func clientHello(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	var sent bytes.Buffer
	_ = tls.Client(recordingConn{Writer: &sent}, config).Handshake()
	return sent.Bytes()
}

// recordingConn is a connection whose other side says nothing.
type recordingConn struct {
	net.Conn
	io.Writer
}

func (c recordingConn) Write(b []byte) (int, error) { return c.Writer.Write(b) }
func (recordingConn) Read([]byte) (int, error)      { return 0, io.EOF }
func (recordingConn) Close() error                  { return nil }

// echConfig returns what a server publishes for those who encrypt their
// ClientHello to it.
func echConfig(t *testing.T) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const public = "api.example.org"
	pub := key.PublicKey().Bytes()
	b := []byte{7, 0, 0x20, 0, byte(len(pub))} // id 7, X25519
	b = append(b, pub...)
	b = append(b, 0, 4, 0, 1, 0, 1) // HKDF-SHA256, AES-128-GCM
	b = append(b, 32, byte(len(public)))
	b = append(b, public...)
	b = append(b, 0, 0)
	b = append([]byte{0xfe, 0x0d, 0, byte(len(b))}, b...)
	return append([]byte{0, byte(len(b))}, b...)
}

// withName is a ClientHello with that name, as it is.
func withName(t *testing.T, name string) []byte {
	t.Helper()
	placeholder := strings.Repeat("q", len(name))
	b := clientHello(t, &tls.Config{ServerName: placeholder})
	if bytes.Count(b, []byte(placeholder)) != 1 {
		t.Fatalf("there are %d placeholders", bytes.Count(b, []byte(placeholder)))
	}
	return bytes.Replace(b, []byte(placeholder), []byte(name), 1)
}

// inRecords splits the content of a record into records of n bytes.
func inRecords(b []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(b[5:], n) {
		out = append(append(out, b[0], b[1], b[2], byte(len(part)>>8), byte(len(part))), part...)
	}
	return out
}

// wantAlert reads a TLS alert and then an end.
func wantAlert(t *testing.T, c io.Reader) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, alertUnrecognizedName) {
		t.Errorf("read %x, error %v; want a TLS alert and the end", got, err)
	}
}

func TestTLS(t *testing.T) {
	const (
		to    = "203.0.113.5:443"
		other = "203.0.113.6:443"
	)
	named := func(name string) []byte { return withName(t, name) }
	good := named("api.example.org")
	ech := echConfig(t)
	unnamed := []sandbox.EgressDenial{refusal(sandbox.DeniedUnnamed, "", to, forAddr(to))}
	wrong := func(name string) []sandbox.EgressDenial {
		return []sandbox.EgressDenial{refusal(sandbox.DeniedName, name, to, forHost(name, 443))}
	}
	for _, tt := range []struct {
		name   string
		to     string
		send   []byte
		end    bool // the guest sends no more
		pass   bool
		denied []sandbox.EgressDenial
	}{
		{name: "allowed", send: good, pass: true},
		{name: "upper case", send: named("API.Example.org"), pass: true},
		{name: "wildcard", send: named("a.b.example.com"), pass: true},
		{name: "IDN", send: named("xn--bcher-kva.example"), pass: true},
		{name: "first data behind it", send: append(slices.Clone(good), "early data"...), pass: true},
		{name: "records of one byte", send: inRecords(good, 1), pass: true},
		{name: "records of 100 bytes", send: inRecords(good, 100), pass: true},
		{name: "name in two records", send: inRecords(good, bytes.Index(good, []byte("api."))+1), pass: true},
		{name: "with TLS 1.2", send: clientHello(t, &tls.Config{ServerName: "api.example.org", MaxVersion: tls.VersionTLS12}), pass: true},

		{name: "no name", send: clientHello(t, &tls.Config{InsecureSkipVerify: true}), denied: unnamed},
		{name: "an address", send: named("203.0.113.5"), denied: []sandbox.EgressDenial{refusal(sandbox.DeniedName, "203.0.113.5", to, forAddr(to))}},
		{name: "not allowed", send: named("www.example.org"), denied: wrong("www.example.org")},
		{name: "apex of a wildcard", send: named("example.com"), denied: wrong("example.com")},
		{name: "not allowed at the port", send: named("web.example.org"), denied: wrong("web.example.org")},
		{name: "at another address", to: other, send: good, denied: []sandbox.EgressDenial{refusal(sandbox.DeniedName, "api.example.org", other, forAddr(other))}},
		{name: "dot at the end", send: named("api.example.org."), denied: unnamed},
		{name: "NUL", send: named("api.example.org\x00.evil.net"), denied: []sandbox.EgressDenial{refusal(sandbox.DeniedName, "api.example.org�.evil.net", to, forAddr(to))}},
		{name: "IDN that is not ASCII", send: named("bücher.example"), denied: []sandbox.EgressDenial{refusal(sandbox.DeniedName, "bücher.example", to, forHost("bücher.example", 443))}},
		{name: "spaces", send: named(" api.example.org"), denied: []sandbox.EgressDenial{refusal(sandbox.DeniedName, " api.example.org", to, forAddr(to))}},
		{name: "encrypted ClientHello", send: clientHello(t, &tls.Config{ServerName: "hidden.evil.net", EncryptedClientHelloConfigList: ech, MinVersion: tls.VersionTLS13}), denied: unnamed},
		{name: "not TLS", send: []byte("SSH-2.0-OpenSSH_9.2\r\n"), denied: unnamed},
		{name: "HTTP", send: []byte("GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n"), denied: unnamed},
		{name: "SSL 2", send: append([]byte{0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10}, make([]byte, 40)...), denied: unnamed},
		{name: "another message", send: []byte{22, 3, 1, 0, 4, 20, 0, 0, 0}, denied: unnamed},
		{name: "empty records", send: append(bytes.Repeat([]byte{22, 3, 1, 0, 0}, 100), good...), denied: unnamed},
		{name: "cut off", send: good[:100], end: true, denied: unnamed},
		{name: "without end", send: endless(), denied: unnamed},
		{name: "longer than it can be", send: inRecords(append([]byte{22, 3, 1, 0, 0, 1, 0xFF, 0xFF, 0xFF}, make([]byte, 100_000)...), 16000), denied: unnamed},
		{name: "nothing", end: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, forName("api.example.org", 443), forName("*.example.com"), forName("web.example.org", 80), forName("bücher.example"))
			w.resolves(zone{
				"api.example.org.": {"203.0.113.5"}, "a.b.example.com.": {"203.0.113.5"}, "web.example.org.": {"203.0.113.5"},
				"xn--bcher-kva.example.": {"203.0.113.5"}, "evil.net.": {"203.0.113.6"},
			})
			dest := tt.to
			if dest == "" {
				dest = to
			}
			w.server(dest, echoTCP)
			w.resolve("api.example.org", dns.TypeA)
			c := w.connectTo(dest)
			if _, err := c.Write(tt.send); err != nil && tt.pass {
				t.Fatal(err)
			}
			if tt.pass || tt.end {
				_ = c.CloseWrite()
			}
			switch {
			case tt.pass:
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, tt.send) {
					t.Errorf("the server got %d bytes, error %v; want the %d that were sent", len(got), err, len(tt.send))
				}
			case tt.send == nil:
				if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
					t.Errorf("read %x, error %v; want the end", got, err)
				}
			default:
				wantAlert(t, c)
			}
			if got := w.connected(); !tt.pass && len(got) > 0 {
				t.Errorf("the relay connected to %v", got)
			}
			w.wantDenials(tt.denied...)
		})
	}
}

// endless is a ClientHello that promises more than may come.
func endless() []byte {
	return inRecords(append([]byte{22, 3, 1, 0, 0, 1, 0, 0xFF, 0xFF}, make([]byte, 65_000)...), 10)
}

// One byte in each segment is a ClientHello as well.
func TestTLSInSegments(t *testing.T) {
	const to = "203.0.113.5:443"
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	w.server(to, echoTCP)
	c := w.connectTo(to)
	_ = c.SetNoDelay(true)
	hello := withName(t, "api.example.org")
	for _, b := range hello {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, hello) {
		t.Errorf("the server got %d bytes, error %v; want %d", len(got), err, len(hello))
	}
}

// A whole connection, with a server that the guest can verify.
func TestTLSEndToEnd(t *testing.T) {
	const to = "203.0.113.5:443"
	w := newWorld(t, forName("example.com"))
	w.resolves(zone{"example.com.": {"203.0.113.5"}})
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	w.at(to, server.Listener.Addr().String())
	// The name that the server's certificate is for.
	roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	c := tls.Client(w.connectTo(to), &tls.Config{ServerName: "example.com", RootCAs: roots})
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.0 404")) {
		t.Errorf("read %q, error %v", got, err)
	}
}

func FuzzReadHello(f *testing.F) {
	var sent bytes.Buffer
	_ = tls.Client(recordingConn{Writer: &sent}, &tls.Config{ServerName: "api.example.org"}).Handshake()
	f.Add(sent.Bytes())
	f.Add(inRecords(sent.Bytes(), 7))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, raw, err := readHello(bytes.NewReader(b))
		if len(raw) > maxHello || !bytes.HasPrefix(b, raw) {
			t.Errorf("%d bytes are passed on, which are not those that came", len(raw))
		}
		if err != nil && (h.name != "" || h.encrypted) {
			t.Errorf("there is %+v, though %v", h, err)
		}
		if h.name != "" && !bytes.Contains(joined(raw), []byte(h.name)) {
			t.Errorf("%q is not in what came", h.name)
		}
	})
}

// joined returns the content of records.
func joined(b []byte) (content []byte) {
	for len(b) >= 5 {
		n := min(int(b[3])<<8|int(b[4]), len(b)-5)
		content, b = append(content, b[5:5+n]...), b[5+n:]
	}
	return content
}
