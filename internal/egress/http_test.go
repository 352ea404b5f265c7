package egress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/internal/sandbox"
)

// webServer is a server that notes what it is asked for.
type webServer struct {
	mu  sync.Mutex
	got []string
}

func (s *webServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.got = append(s.got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.Host, r.RequestURI, body)))
	s.mu.Unlock()
	_, _ = io.WriteString(w, "hello from "+r.Host)
}

func (s *webServer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// web starts such a server at a destination.
func (w *world) web(to string) *webServer {
	s := &webServer{}
	server := httptest.NewServer(s)
	w.t.Cleanup(func() { w.user.close(); server.Close() })
	w.at(to, server.Listener.Addr().String())
	return s
}

func TestHTTP(t *testing.T) {
	const to = "203.0.113.5:80"
	const get, end = "GET /x?a=%ZZ;b HTTP/1.1\r\n", "\r\n\r\n"
	unnamed := []sandbox.EgressDenial{refusal(sandbox.DeniedUnnamed, "", to, forAddr(to))}
	wrong := func(name string, rule *sandbox.EgressRule) []sandbox.EgressDenial {
		return []sandbox.EgressDenial{refusal(sandbox.DeniedName, name, to, rule)}
	}
	for _, tt := range []struct {
		name   string
		send   string
		status []int
		got    []string
		denied []sandbox.EgressDenial
	}{
		{name: "allowed", send: get + "Host: api.example.org" + end, status: []int{200}, got: []string{"GET api.example.org /x?a=%ZZ;b"}},
		{name: "upper case", send: get + "Host: API.example.ORG" + end, status: []int{200}, got: []string{"GET API.example.ORG /x?a=%ZZ;b"}},
		{name: "dot at the end", send: get + "Host: api.example.org." + end, status: []int{200}, got: []string{"GET api.example.org. /x?a=%ZZ;b"}},
		{name: "with the port", send: get + "Host: api.example.org:80" + end, status: []int{200}, got: []string{"GET api.example.org:80 /x?a=%ZZ;b"}},
		{name: "with a body", send: "POST / HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 4\r\n\r\nbody", status: []int{200}, got: []string{"POST api.example.org / body"}},
		{name: "HTTP/1.0 with Host", send: "GET / HTTP/1.0\r\nHost: api.example.org" + end, status: []int{200}, got: []string{"GET api.example.org /"}},
		{name: "OPTIONS *", send: "OPTIONS * HTTP/1.1\r\nHost: api.example.org" + end, status: []int{200}, got: nil},
		{name: "absolute form", send: "GET http://api.example.org/y HTTP/1.1\r\nHost: api.example.org" + end, status: []int{200}, got: []string{"GET api.example.org /y"}},
		{name: "absolute form, Host of another", send: "GET http://api.example.org/y HTTP/1.1\r\nHost: evil.net" + end, status: []int{200}, got: []string{"GET api.example.org /y"}},
		{name: "two requests", send: get + "Host: api.example.org" + end + "GET /2 HTTP/1.1\r\nHost: www.example.com" + end, status: []int{200, 200},
			got: []string{"GET api.example.org /x?a=%ZZ;b", "GET www.example.com /2"}},
		{name: "offers h2c", send: get + "Host: api.example.org\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__" + end, status: []int{200}, got: []string{"GET api.example.org /x?a=%ZZ;b"}},
		{name: "a length and chunks", send: "POST / HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.net" + end,
			status: []int{200, 403}, got: []string{"POST api.example.org /"}, denied: wrong("evil.net", forHost("evil.net", 80))},

		{name: "not allowed", send: get + "Host: evil.net" + end, status: []int{403}, denied: wrong("evil.net", forHost("evil.net", 80))},
		{name: "not allowed at the port", send: get + "Host: tls.example.org" + end, status: []int{403}, denied: wrong("tls.example.org", forHost("tls.example.org", 80))},
		{name: "apex of a wildcard", send: get + "Host: example.com" + end, status: []int{403}, denied: wrong("example.com", forHost("example.com", 80))},
		{name: "at another address", send: get + "Host: far.example.com" + end, status: []int{403}, denied: wrong("far.example.com", forAddr(to))},
		{name: "second request for another", send: get + "Host: api.example.org" + end + "GET /2 HTTP/1.1\r\nHost: evil.net" + end + get + "Host: api.example.org" + end,
			status: []int{200, 403}, got: []string{"GET api.example.org /x?a=%ZZ;b"}, denied: wrong("evil.net", forHost("evil.net", 80))},
		{name: "absolute form of another", send: "GET http://evil.net/y HTTP/1.1\r\nHost: api.example.org" + end, status: []int{403}, denied: wrong("evil.net", forHost("evil.net", 80))},
		{name: "absolute form with https", send: "GET https://api.example.org/y HTTP/1.1\r\nHost: api.example.org" + end, status: []int{403}, denied: wrong("api.example.org", forHost("api.example.org", 80))},
		{name: "an address", send: get + "Host: 203.0.113.5" + end, status: []int{403}, denied: wrong("203.0.113.5", forAddr(to))},
		{name: "an IPv6 address", send: get + "Host: [::1]:80" + end, status: []int{403}, denied: wrong("::1", forAddr(to))},
		{name: "another port", send: get + "Host: api.example.org:8080" + end, status: []int{403}, denied: wrong("api.example.org:8080", forAddr(to))},
		{name: "with a user", send: get + "Host: api.example.org@evil.net" + end, status: []int{400}, denied: unnamed},
		{name: "no Host", send: "GET / HTTP/1.1" + end, status: []int{400}, denied: unnamed},
		{name: "HTTP/1.0 without Host", send: "GET / HTTP/1.0" + end, status: []int{403}, denied: unnamed},
		{name: "empty Host", send: get + "Host:" + end, status: []int{403}, denied: unnamed},
		{name: "two Hosts", send: get + "Host: api.example.org\r\nHost: evil.net" + end, status: []int{400}, denied: unnamed},
		{name: "two equal Hosts", send: get + "Host: api.example.org\r\nHost: api.example.org" + end, status: []int{400}, denied: unnamed},
		{name: "Host with a space before the colon", send: get + "Host : evil.net\r\nHost: api.example.org" + end, status: []int{400}, denied: unnamed},
		{name: "folded Host", send: get + "Host: api.example.org\r\n evil.net" + end, status: []int{400}, denied: unnamed},
		{name: "NUL in Host", send: get + "Host: api.example.org\x00evil.net" + end, status: []int{400}, denied: unnamed},
		{name: "two lengths", send: "POST / HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody!", status: []int{400}, denied: unnamed},
		{name: "unknown transfer encoding", send: "POST / HTTP/1.1\r\nHost: api.example.org\r\nTransfer-Encoding: xchunked\r\n\r\n", status: []int{501}, denied: unnamed},
		{name: "CONNECT", send: "CONNECT api.example.org:443 HTTP/1.1\r\nHost: api.example.org:443" + end, status: []int{403}, denied: unnamed},
		{name: "HTTP/2 from the beginning", send: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status: []int{403}, denied: unnamed},
		{name: "HTTP/2 request line", send: "GET / HTTP/2.0\r\nHost: api.example.org" + end, status: []int{505}, denied: unnamed},
		{name: "HTTP/0.9", send: "GET /" + end, status: []int{400}, denied: unnamed},
		{name: "TLS", send: string(withName(t, "api.example.org")), status: []int{400}, denied: unnamed},
		{name: "64 KiB of head", send: get + "Host: api.example.org\r\nX: " + strings.Repeat("x", 64<<10) + end, status: []int{431}, denied: unnamed},
		{name: "many headers", send: get + "Host: api.example.org\r\n" + strings.Repeat("A: b\r\n", 20_000) + end, status: []int{431}, denied: unnamed},
		{name: "second request that is none", send: get + "Host: api.example.org" + end + "nonsense" + end, status: []int{200, 400}, got: []string{"GET api.example.org /x?a=%ZZ;b"}, denied: unnamed},
		{name: "nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, forName("api.example.org"), forName("*.example.com", 80), forName("tls.example.org", 443))
			w.resolves(zone{
				"api.example.org.": {"203.0.113.5"}, "www.example.com.": {"203.0.113.5"}, "tls.example.org.": {"203.0.113.5"},
				"far.example.com.": {"203.0.113.6"}, "evil.net.": {"203.0.113.5"}, "example.com.": {"203.0.113.5"},
			})
			server := w.web(to)
			c := w.connectTo(to)
			_, _ = io.WriteString(c, tt.send)
			answers := bufio.NewReader(c)
			var status []int
			for range tt.status {
				res, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				status = append(status, res.StatusCode)
				if res.StatusCode == http.StatusForbidden && !strings.Contains(string(body), "egress policy") {
					t.Errorf("the answer is %q, and does not say who refuses", body)
				}
			}
			_ = c.CloseWrite()
			if rest, _ := io.ReadAll(answers); len(rest) > 0 {
				t.Errorf("there is more: %q", rest)
			}
			if !slices.Equal(status, tt.status) {
				t.Errorf("answers are %d, want %d", status, tt.status)
			}
			if got := server.requests(); !slices.Equal(got, tt.got) {
				t.Errorf("the server got\n  %q, want\n  %q", got, tt.got)
			}
			if got := w.connected(); len(tt.status) > 0 && tt.status[0] != 200 && len(got) > 0 {
				t.Errorf("the relay connected to %v", got)
			}
			w.wantDenials(tt.denied...)
		})
	}
}

// A connection serves a name for as long as it is open, also when the name is at
// another address by then; a new one does not.
func TestHTTPMoved(t *testing.T) {
	const to, request = "203.0.113.5:80", "GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n"
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	w.web(to)
	c := w.connectTo(to)
	r := bufio.NewReader(c)
	answer := func(c io.Writer, r *bufio.Reader, want int) {
		t.Helper()
		_, _ = io.WriteString(c, request)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if res.StatusCode != want {
			t.Errorf("the answer is %d, want %d", res.StatusCode, want)
		}
	}
	answer(c, r, 200)
	w.resolves(zone{"api.example.org.": {"203.0.113.6"}})
	w.user.resolver.remember("api.example.org", netip.MustParseAddr("203.0.113.5"), time.Now())
	answer(c, r, 200)
	later := w.connectTo(to)
	answer(later, bufio.NewReader(later), 403)
	if got := len(w.connected()); got != 1 {
		t.Errorf("the relay connected %d times, want once", got)
	}
}

// What is relayed is what was sent: nothing is added, in either direction.
func TestHTTPUnchanged(t *testing.T) {
	const to = "203.0.113.5:80"
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\n<a"
	heads := make(chan string, 1)
	w.server(to, func(c *net.TCPConn) {
		buf := make([]byte, 4096)
		n, _ := c.Read(buf)
		heads <- string(buf[:n])
		_, _ = io.WriteString(c, answer)
	})
	c := w.connectTo(to)
	const head = "GET //a/../b%2fc?q=%zz HTTP/1.1\r\nHost: api.example.org\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
	_, _ = io.WriteString(c, head)
	if got := <-heads; got != head {
		t.Errorf("the server got\n%q, want\n%q", got, head)
	}
	buf := make([]byte, len(answer))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != answer {
		t.Errorf("the guest got\n%q, want\n%q", buf, answer)
	}
	w.wantDenials()
}

// An answer is passed on as it comes, before it has ended.
func TestHTTPStreams(t *testing.T) {
	const to = "203.0.113.5:80"
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	more := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, "first")
		rw.(http.Flusher).Flush()
		<-more
		_, _ = io.WriteString(rw, "second")
	}))
	defer server.Close()
	defer w.user.close()
	w.at(to, server.Listener.Addr().String())
	c := w.connectTo(to)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first" {
		t.Fatalf("read %q, error %v", first, err)
	}
	close(more)
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "second" {
		t.Errorf("read %q, error %v", rest, err)
	}
}

func TestHTTPWebsocket(t *testing.T) {
	const to = "203.0.113.5:80"
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	ended := make(chan struct{})
	w.server(to, func(c *net.TCPConn) {
		defer close(ended)
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		echoTCP(c)
	})
	c := w.connectTo(to)
	_, _ = io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: api.example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the answer is %v, error %v", res, err)
	}
	_, _ = io.WriteString(c, "frame")
	frame := make([]byte, 5)
	if _, err := io.ReadFull(r, frame); err != nil || string(frame) != "frame" {
		t.Fatalf("read %q, error %v", frame, err)
	}
	// It is cut like any other connection.
	w.set(forName("other.example.org"))
	wantReset(t, r)
	<-ended
	eventually(t, "the end of the flow", func() bool { return w.flows() == 0 })
}

func TestHTTPNoServer(t *testing.T) {
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	w.resolve("api.example.org", dns.TypeA)
	c := w.connectTo("203.0.113.5:80")
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n")
	wantReset(t, c)
	w.wantDenials()
}

// What a server sends is bounded too.
func TestHTTPLargeAnswerHead(t *testing.T) {
	const to = "203.0.113.5:80"
	w := newWorld(t, forName("api.example.org"))
	w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
	w.server(to, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for {
			if _, err := io.WriteString(c, "A: "+strings.Repeat("b", 1000)+"\r\n"); err != nil {
				return
			}
		}
	})
	c := w.connectTo(to)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n")
	wantReset(t, c)
}

// FuzzHTTP sends bytes to port 80 of an allowed name. Whatever they are, nobody
// is connected to but where the guest wanted to go, and only with that name.
func FuzzHTTP(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: api.example.org\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: evil.net\r\n\r\n",
		"GET http://evil.net/ HTTP/1.0\r\nHost: api.example.org\r\nConnection: keep-alive\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	const to = "203.0.113.5:80"
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t, forName("api.example.org"))
		w.resolves(zone{"api.example.org.": {"203.0.113.5"}})
		server := w.web(to)
		c := w.connectTo(to)
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = c.Write(b)
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		for _, got := range w.connected() {
			if got != netip.MustParseAddrPort(to) {
				t.Errorf("the relay connected to %s", got)
			}
		}
		for _, got := range server.requests() {
			name := strings.ToLower(strings.TrimSuffix(strings.Split(got, " ")[1], ":80"))
			if strings.TrimSuffix(name, ".") != "api.example.org" {
				t.Errorf("the server was asked %q", got)
			}
		}
	})
}
