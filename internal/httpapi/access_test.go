package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// fakeKeys has one key, "good", until it is revoked.
type fakeKeys struct {
	asked bool
	good  context.Context
}

func (k fakeKeys) Asked() bool { return k.asked }

func (k fakeKeys) Admit(key string) (string, context.Context, bool) {
	return "somebody", k.good, key == "good" && k.good.Err() == nil
}

// TestBrowsersAreKeptOut sends what browsers send on behalf of web pages.
func TestBrowsersAreKeptOut(t *testing.T) {
	access := Access{Hosts: []string{"localhost:7777", "127.0.0.1:7777", "[::1]:7777", "emberd.example"}}
	for _, tt := range []struct {
		name, host string
		header     http.Header
		status     int
	}{
		{name: "curl", host: "127.0.0.1:7777", status: 200},
		{name: "IPv6", host: "[::1]:7777", status: 200},
		{name: "other case", host: "LocalHost:7777", status: 200},
		{name: "allowed name", host: "emberd.example", status: 200},
		{name: "user's own page", host: "localhost:7777", header: http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://localhost:7777"}}, status: 200},
		{name: "behind a TLS proxy", host: "emberd.example", header: http.Header{"Origin": {"https://emberd.example"}}, status: 200},
		{name: "address bar", host: "localhost:7777", header: http.Header{"Sec-Fetch-Site": {"none"}}, status: 200},
		{name: "cross-site form", host: "127.0.0.1:7777", header: http.Header{"Sec-Fetch-Site": {"cross-site"}, "Origin": {"https://evil.test"}}, status: 403},
		{name: "cross-site image", host: "127.0.0.1:7777", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, status: 403},
		{name: "old browser", host: "127.0.0.1:7777", header: http.Header{"Origin": {"https://evil.test"}}, status: 403},
		{name: "sandboxed frame", host: "127.0.0.1:7777", header: http.Header{"Origin": {"null"}}, status: 403},
		{name: "another port of this host", host: "localhost:7777", header: http.Header{"Sec-Fetch-Site": {"same-site"}}, status: 403},
		{name: "another port's origin", host: "localhost:7777", header: http.Header{"Origin": {"http://localhost:3000"}}, status: 403},
		{name: "a mark of later browsers", host: "localhost:7777", header: http.Header{"Sec-Fetch-Site": {"elsewhere"}}, status: 403},
		{name: "two origins", host: "localhost:7777", header: http.Header{"Origin": {"http://localhost:7777", "https://evil.test"}}, status: 403},
		{name: "two marks", host: "localhost:7777", header: http.Header{"Sec-Fetch-Site": {"none", "cross-site"}}, status: 403},
		{name: "DNS rebinding", host: "evil.test:7777", header: http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"http://evil.test:7777"}}, status: 421},
		{name: "any address", host: "0.0.0.0:7777", status: 421},
		{name: "WebSocket", host: "localhost:7777", header: http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Origin": {"https://evil.test"}}, status: 403},
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
			t.Run(tt.name+" "+method, func(t *testing.T) {
				e := &fakeEngine{}
				r := httptest.NewRequest(method, "/sandboxes/"+knownID, nil)
				r.Host, r.Header = tt.host, tt.header
				rec := httptest.NewRecorder()
				(&gate{unguarded(e, nil, &testenv.Log{}), access}).ServeHTTP(rec, r)
				want := tt.status
				if want == 200 {
					want = map[string]int{"GET": 200, "HEAD": 200, "POST": 405, "PUT": 405, "DELETE": 204, "OPTIONS": 204}[method]
				}
				if rec.Code != want {
					t.Errorf("status %d, want %d: %s", rec.Code, want, rec.Body)
				}
				if called := len(e.calls) > 0; called != (want == 204 && method == "DELETE") {
					t.Errorf("the engine was called: %v", e.calls)
				}
				for name := range rec.Header() {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("header %s lets other origins in", name)
					}
				}
			})
		}
	}
}

var parameter = regexp.MustCompile(`\{\w+\}`)

// TestEveryRouteAsksForAKey walks the routes, and what is none, with keys of all
// kinds.
func TestEveryRouteAsksForAKey(t *testing.T) {
	for _, tt := range []struct {
		name   string
		access Access
		header []string
		in     bool
	}{
		{"no keys anywhere", Access{}, nil, true},
		{"none asked for", Access{Keys: fakeKeys{}}, nil, true},
		{"none asked for, one given", Access{Keys: fakeKeys{}}, []string{"Bearer bad"}, true},
		{"none given", Access{Keys: fakeKeys{asked: true}}, nil, false},
		{"none given, always asked for", Access{Keys: fakeKeys{}, KeysAlways: true}, nil, false},
		{"good", Access{Keys: fakeKeys{asked: true}}, []string{"Bearer good"}, true},
		{"good, in lower case", Access{Keys: fakeKeys{asked: true}}, []string{"bearer good"}, true},
		{"bad", Access{Keys: fakeKeys{asked: true}}, []string{"Bearer bad"}, false},
		{"empty", Access{Keys: fakeKeys{asked: true}}, []string{""}, false},
		{"another scheme", Access{Keys: fakeKeys{asked: true}}, []string{"Basic good"}, false},
		{"no scheme", Access{Keys: fakeKeys{asked: true}}, []string{"good"}, false},
		{"two", Access{Keys: fakeKeys{asked: true}}, []string{"Bearer good", "Bearer bad"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if keys, ok := tt.access.Keys.(fakeKeys); ok {
				keys.good = t.Context()
				tt.access.Keys = keys
			}
			var log testenv.Log
			a := unguarded(&fakeEngine{}, nil, &log)
			walk := append(slices.Concat(a.routes(), a.execRoutes(), a.egressRoutes(), a.operatorRoutes()),
				route{method: "GET", path: "/openapi.json"}, route{method: "GET", path: "/nothing"},
				route{method: "PUT", path: "/healthz"}, route{method: "GET", path: "//healthz"}, route{method: "GET", path: "/healthz/"})
			for _, rt := range walk {
				r := httptest.NewRequest(rt.method, parameter.ReplaceAllString(rt.path, knownID), nil)
				r.Header["Authorization"] = tt.header
				rec := httptest.NewRecorder()
				(&gate{a, tt.access}).ServeHTTP(rec, r)
				if in := rec.Code != 401; in != (tt.in || rt.open) {
					t.Errorf("%s %s: status %d", rt.method, rt.path, rec.Code)
				}
				if rec.Code == 401 && (rec.Header().Get("WWW-Authenticate") != "Bearer" || !strings.Contains(rec.Body.String(), `"code":"unauthorized"`)) {
					t.Errorf("%s %s: %v %s", rt.method, rt.path, rec.Header(), rec.Body)
				}
				if said := rec.Body.String() + log.String(); strings.Contains(said, "good") || strings.Contains(said, "bad") {
					t.Errorf("%s %s: the key is in what is said: %s", rt.method, rt.path, said)
				}
			}
		})
	}
}

func TestOnlyHealthIsOpen(t *testing.T) {
	a := unguarded(&fakeEngine{}, nil, &testenv.Log{})
	for _, rt := range slices.Concat(a.routes(), a.templateRoutes(), a.operatorRoutes()) {
		if rt.open != (rt.path == "/healthz") {
			t.Errorf("%s %s: open %v", rt.method, rt.path, rt.open)
		}
	}
}

func TestQueryIsLimited(t *testing.T) {
	for size, want := range map[int]int{maxQuery: 200, maxQuery + 1: 414} {
		rec := request(t, newAPI(&fakeEngine{}), "GET", "/info?"+strings.Repeat("a", size), "")
		if rec.Code != want {
			t.Errorf("%d bytes: status %d, want %d", size, rec.Code, want)
		}
	}
}

// serve serves a on a port of its own, until the test ends.
func serve(t *testing.T, a *API, acc Access) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	acc.MaxConns = max(acc.MaxConns, 10)
	srv := a.Server(acc)
	ended := make(chan error)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// more is more than the kernel keeps of a connection that nobody reads.
var more = sandbox.ExecResult{Stdout: bytes.Repeat([]byte("a"), 32<<20)}

// TestRevokedKey checks that a request whose key is revoked ends at once,
// whatever it waits for: its program, its body, or its client to read.
func TestRevokedKey(t *testing.T) {
	const head = "POST /sandboxes/" + knownID + "/exec HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: "
	for _, tt := range []struct {
		name, request string
		engine        *fakeEngine
		want          string
	}{
		{"program", head + "12\r\n\r\n{\"code\":\"1\"}", nil, "HTTP/1.1 401"},
		{"body", head + "12\r\n\r\n{", nil, "HTTP/1.1 401"},
		{"answer", head + "12\r\n\r\n{\"code\":\"1\"}", &fakeEngine{result: more}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			good, revoke := context.WithCancel(t.Context())
			entered := make(chan struct{})
			e := tt.engine
			if e == nil {
				e = &fakeEngine{err: context.Canceled, onCall: func(ctx context.Context, _ string) {
					close(entered)
					<-ctx.Done()
				}}
			}
			addr := serve(t, unguarded(e, nil, &testenv.Log{}), Access{Keys: fakeKeys{asked: true, good: good}})
			conn := dial(t, addr)
			if _, err := io.WriteString(conn, tt.request); err != nil {
				t.Fatal(err)
			}
			switch tt.name {
			case "program":
				<-entered
			default: // Nothing tells that the server waits for the client.
				time.Sleep(time.Second)
			}
			began := time.Now()
			revoke()
			if tt.want == "" {
				// What was under way when the key was revoked is not an answer.
				time.Sleep(lastWords + 100*time.Millisecond)
				n, err := io.Copy(io.Discard, conn)
				if n >= int64(len(more.Stdout)) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("read %d bytes after the key was revoked, %v", n, err)
				}
				return
			}
			answer, err := bufio.NewReader(conn).ReadString('\n')
			if !strings.HasPrefix(answer, tt.want) {
				t.Errorf("got %q, %v, want %s", answer, err, tt.want)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestNeverRead checks that a client that does not read loses its connection.
func TestNeverRead(t *testing.T) {
	a := unguarded(&fakeEngine{result: more}, nil, &testenv.Log{})
	a.writeGrace = 100 * time.Millisecond
	conn := dial(t, serve(t, a, Access{}))
	_, _ = fmt.Fprintf(conn, "POST /sandboxes/%s/exec HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"code\":\"1\"}", knownID)
	time.Sleep(2 * time.Second)
	n, err := io.Copy(io.Discard, conn)
	if n >= int64(len(more.Stdout)) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d bytes were waiting, %v", n, err)
	}
}

// TestCrowd checks that those who ask for nothing give way to those who do.
func TestCrowd(t *testing.T) {
	addr := serve(t, unguarded(&fakeEngine{}, nil, &testenv.Log{}), Access{MaxConns: 10})
	var idle []net.Conn
	for range 10 {
		idle = append(idle, dial(t, addr))
	}
	ask := func(conn net.Conn) error {
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	// The first is no longer the one that has waited longest.
	if err := ask(idle[0]); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := ask(dial(t, addr)); err != nil {
			t.Errorf("one more client: %v", err)
		}
	}
	for i, conn := range idle {
		// Whoever was not closed is asked for nothing, and so not answered.
		if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		if closed := errors.Is(err, io.EOF); closed != (i >= 1 && i <= 3) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// TestPeer checks that what the listener says of a connection reaches its
// requests.
func TestPeer(t *testing.T) {
	e := &fakeEngine{}
	addr := serve(t, unguarded(e, nil, &testenv.Log{}), Access{Peer: func(net.Conn) error { return errors.New("user 4711") }})
	resp, err := http.Post("http://"+addr+"/sandboxes", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 403 || strings.Contains(string(body), "4711") || len(e.calls) > 0 {
		t.Errorf("%d %s, %v, engine calls %v", resp.StatusCode, body, err, e.calls)
	}
}
