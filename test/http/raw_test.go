package http

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/apikey"
)

// TestHostHeaders checks every way to write a Host header: only the exact names
// of the listener pass, and before any key is looked at.
func TestHostHeaders(t *testing.T) {
	s := start(t, "")
	if _, _, err := apikey.Create(s.data.Keys(), ""); err != nil {
		t.Fatal(err)
	}
	port := s.addr[strings.LastIndexByte(s.addr, ':')+1:]
	// A request that passes is asked for its key.
	const pass = "401"
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		line, _, _ := raw(t, s.addr, strings.NewReader("GET /info HTTP/1.1\r\nHost: localhost:"+port+"\r\nConnection: close\r\n\r\n"))
		if strings.Contains(line, pass) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the key is not asked for: %s", line)
		}
	}
	for _, tt := range []struct{ name, lines, want string }{
		{"localhost", "Host: localhost:PORT", pass},
		{"IPv4", "Host: 127.0.0.1:PORT", pass},
		{"IPv6", "Host: [::1]:PORT", pass},
		{"upper case", "Host: LOCALHOST:PORT", pass},
		{"field name in lower case", "host: localhost:PORT", pass},
		{"white space around", "Host:  localhost:PORT ", pass},
		{"absent", "X-Nothing: 1", "400"},
		{"empty", "Host:", "421"},
		{"twice, alike", "Host: localhost:PORT\r\nHost: localhost:PORT", "400"},
		{"twice, different", "Host: localhost:PORT\r\nHost: evil.test", "400"},
		{"no port", "Host: localhost", "421"},
		{"other port", "Host: localhost:1", "421"},
		{"empty port", "Host: localhost:", "421"},
		{"port with a zero before", "Host: localhost:0PORT", "421"},
		{"port twice", "Host: localhost:PORT:PORT", "421"},
		{"trailing dot", "Host: localhost.:PORT", "421"},
		{"subdomain", "Host: evil.localhost:PORT", "421"},
		{"suffix", "Host: localhost.evil:PORT", "421"},
		{"prefix", "Host: evillocalhost:PORT", "421"},
		{"other name", "Host: evil.test:PORT", "421"},
		{"userinfo", "Host: localhost:PORT@evil.test", "400"},
		{"userinfo before", "Host: evil.test@localhost:PORT", "400"},
		{"IPv6 zone", "Host: [::1%25lo]:PORT", "421"},
		{"IPv6 in full", "Host: [0:0:0:0:0:0:0:1]:PORT", "421"},
		{"IPv4 in IPv6", "Host: [::ffff:127.0.0.1]:PORT", "421"},
		{"any address", "Host: 0.0.0.0:PORT", "421"},
		{"short address", "Host: 127.1:PORT", "421"},
		{"address as a number", "Host: 2130706433:PORT", "421"},
		{"hexadecimal address", "Host: 0x7f.0.0.1:PORT", "421"},
		{"another loopback address", "Host: 127.0.0.2:PORT", "421"},
		{"a list", "Host: localhost:PORT, evil.test", "400"},
		{"a path", "Host: localhost:PORT/evil", "400"},
		{"NUL", "Host: localhost:PORT\x00evil", "400"},
		{"folded", "Host: localhost:PORT\r\n evil", "400"},
		{"white space before the colon", "Host : localhost:PORT", "400"},
		{"forwarded", "Host: evil.test\r\nX-Forwarded-Host: localhost:PORT", "421"},
	} {
		request := "GET /info HTTP/1.1\r\n" + strings.ReplaceAll(tt.lines, "PORT", port) + "\r\nConnection: close\r\n\r\n"
		if line, _, _ := raw(t, s.addr, strings.NewReader(request)); !strings.HasPrefix(line, "HTTP/1.1 "+tt.want) {
			t.Errorf("%s: got %q, want %s", tt.name, line, tt.want)
		}
	}
	for _, tt := range []struct{ name, line, want string }{
		{"no Host in HTTP/1.0", "GET /info HTTP/1.0", "421"},
		{"a URL of another host", "GET http://evil.test/info HTTP/1.1\r\nHost: localhost:" + port, "421"},
		{"a URL of this host", "GET http://localhost:" + port + "/info HTTP/1.1\r\nHost: evil.test", pass},
		{"a proxy's CONNECT", "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443", "421"},
	} {
		if line, _, _ := raw(t, s.addr, strings.NewReader(tt.line+"\r\nConnection: close\r\n\r\n")); !strings.Contains(line, " "+tt.want+" ") {
			t.Errorf("%s: got %q, want %s", tt.name, line, tt.want)
		}
	}
}

// forever repeats text as often as it is read.
func forever(text string) io.Reader {
	var readers []io.Reader
	for range 1 << 16 {
		readers = append(readers, strings.NewReader(text))
	}
	return io.MultiReader(readers...)
}

// TestSizes sends too much of everything. It is refused at once, and costs no
// memory.
func TestSizes(t *testing.T) {
	s := start(t, "")
	id := s.create(t)
	post := func(path, headers string, body io.Reader) io.Reader {
		return io.MultiReader(strings.NewReader("POST "+path+" HTTP/1.1\r\nHost: "+s.addr+"\r\n"+headers+"\r\n"), body)
	}
	sized := func(path, body string) io.Reader {
		return post(path, fmt.Sprintf("Content-Length: %d\r\n", len(body)), strings.NewReader(body))
	}
	exec := "/sandboxes/" + id + "/exec"
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.CopyN(z, zeros{}, 100<<20); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	many := strings.Builder{}
	for i := range 80_000 {
		fmt.Fprintf(&many, `,"k%d":1`, i)
	}
	for _, tt := range []struct {
		name   string
		send   io.Reader
		want   string
		closed bool // whether the connection is of no more use
	}{
		{"17 KiB of headers", post(exec, "X: "+strings.Repeat("a", 17<<10)+"\r\n", strings.NewReader("")), "431", true},
		{"1 MiB of headers", post(exec, "X: "+strings.Repeat("a", 1<<20)+"\r\n", strings.NewReader("")), "431", true},
		{"endless headers", io.MultiReader(strings.NewReader("GET /info HTTP/1.1\r\n"), forever("X-A: b\r\n")), "431", true},
		{"endless request line", io.MultiReader(strings.NewReader("GET /"), forever("aaaaaaaa")), "431", true},
		{"4 KiB of query", strings.NewReader("GET /info?" + strings.Repeat("a", 4<<10+1) + " HTTP/1.1\r\nHost: " + s.addr + "\r\n\r\n"), "414", false},
		{"1 MiB and a byte", sized(exec, `{"code":"`+strings.Repeat("a", 1<<20+1-11)+`"}`), "413", true},
		{"a length of exabytes", post(exec, "Content-Length: 9223372036854775807\r\n", strings.NewReader(`{"code":"`)), "413", true},
		{"10,000 deep", sized(exec, `{"code":`+strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000)+`}`), "400", false},
		{"33 deep", sized(exec, `{"code":`+strings.Repeat(`{"a":`, 33)+"1"+strings.Repeat("}", 33)+`}`), "400", false},
		{"80,000 fields", sized(exec, `{"code":"1"`+many.String()+`}`), "400", false},
		{"a million fields", sized(exec, `{"code":"1"`+strings.Repeat(`,"k":1`, 1_000_000)+`}`), "413", true},
		{"endless chunks", post("/sandboxes", "Transfer-Encoding: chunked\r\n", forever("1000\r\n"+strings.Repeat("a", 0x1000)+"\r\n")), "413", true},
		{"endless chunk extension", post("/sandboxes", "Transfer-Encoding: chunked\r\n", io.MultiReader(strings.NewReader("1;"), forever("aaaaaaaa"))), "400", true},
		{"chunk of exabytes", post("/sandboxes", "Transfer-Encoding: chunked\r\n", strings.NewReader("7fffffffffffffff\r\n"+strings.Repeat("a", 5<<10))), "413", true},
		{"length and chunks", post("/sandboxes", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", strings.NewReader("3\r\n[1]\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: "+s.addr+"\r\n\r\n")), "400", true},
		{"two lengths", post("/sandboxes", "Content-Length: 2\r\nContent-Length: 3\r\n", strings.NewReader("[1]")), "400", true},
		{"a length that is none", post("/sandboxes", "Content-Length: +2\r\n", strings.NewReader("[]")), "400", true},
		{"unknown transfer coding", post("/sandboxes", "Transfer-Encoding: gzip, chunked\r\n", strings.NewReader("0\r\n\r\n")), "501", true},
		{"gzip bomb", post(exec, fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n", bomb.Len()), &bomb), "400", false},
		{"no HTTP", strings.NewReader("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"), "400", true},
		{"HTTP/2", strings.NewReader("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "", true},
	} {
		before := s.rss(t)
		line, closed, took := raw(t, s.addr, tt.send)
		grew := s.rss(t) - before
		t.Logf("%-26s %-45q %6.1f ms, %5d KiB", tt.name, line, float64(took.Microseconds())/1000, grew>>10)
		if tt.want != "" && !strings.HasPrefix(line, "HTTP/1.1 "+tt.want) || tt.want == "" && strings.HasPrefix(line, "HTTP/1.1 2") {
			t.Errorf("%s: got %q, want %s", tt.name, line, tt.want)
		}
		if closed != tt.closed {
			t.Errorf("%s: connection closed: %v, want %v", tt.name, closed, tt.closed)
		}
		if *httpTier && tt.want != "" && took > 100*time.Millisecond { // not under the race detector
			t.Errorf("%s: answered after %v", tt.name, took)
		}
		if grew > 8<<20 {
			t.Errorf("%s: the daemon grew by %d KiB", tt.name, grew>>10)
		}
	}
	if _, err := s.client.Get(t.Context(), id); err != nil {
		t.Errorf("the sandbox: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
