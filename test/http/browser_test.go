package http

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

//go:embed testdata/attack.html
var attackPage []byte

// target is a server that a page attacks.
type target struct {
	Label string `json:"label"`
	Base  string `json:"base"`
	Pwned string `json:"pwned"` // the file that shows that a program ran
}

// result is what a page could read.
type result struct{ Name, Got string }

// TestBrowser opens pages in Chromium that attack a daemon: a page of another
// site, one of another port of this host, and one whose host name comes to mean
// this host once it has loaded. None may change anything or read anything.
//
// Each page also attacks a server that is careless, as a check of the attacks:
// what does not reach that one proves nothing.
func TestBrowser(t *testing.T) {
	needs(t, "chromium")
	s := start(t, "")
	id := s.create(t)
	careless := newCareless(t)
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	_, carelessPort, err := net.SplitHostPort(careless.addr)
	if err != nil {
		t.Fatal(err)
	}
	// To the browser this is the daemon's own port under a name of the attacker.
	plain := newPages(t, "127.0.0.1:0", "")
	rebound := newPages(t, "127.0.0.2:"+port, s.addr)
	_, pagesPort, err := net.SplitHostPort(plain.addr)
	if err != nil {
		t.Fatal(err)
	}
	pwned := filepath.Join(t.TempDir(), "pwned")
	daemonAt := func(host string) target { return target{"daemon@" + host, "http://" + host + ":" + port, pwned} }
	carelessAt := func(host string) target {
		return target{"careless@" + host, "http://" + host + ":" + carelessPort, pwned}
	}
	for _, tt := range []struct {
		name, origin string
		pages        *pages
		targets      []target
	}{
		{"another site", "http://evil.test:" + pagesPort, plain, []target{daemonAt("127.0.0.1"), daemonAt("localhost"), daemonAt("0.0.0.0"), carelessAt("127.0.0.1")}},
		{"another port", "http://localhost:" + pagesPort, plain, []target{daemonAt("localhost"), carelessAt("localhost")}},
		{"rebinding", "http://rebind.test:" + port, rebound, []target{daemonAt("rebind.test")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hash, err := json.Marshal(map[string]any{"targets": tt.targets, "sandbox": id})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range browse(t, tt.pages, tt.origin+"/attack.html#"+url.PathEscape(string(hash))) {
				// A rebound page is of the origin that refuses it, and reads that.
				refused := strings.HasPrefix(r.Got, `421 {"error":"emberd does not answer`) || strings.HasPrefix(r.Got, `{"error":"emberd does not answer`)
				if strings.HasPrefix(r.Name, "daemon") && r.Got != "" && (tt.name != "rebinding" || !refused) {
					t.Errorf("%s read %q", r.Name, r.Got)
				}
			}
			list, err := s.client.List(t.Context())
			if err != nil || len(list) != 1 || list[0].ID != id {
				t.Errorf("the sandboxes are %+v, %v", list, err)
			}
			if _, err := os.Stat(pwned); err == nil {
				t.Error("a program of the page ran")
			}
		})
	}
	for _, page := range []string{"127.0.0.1", "localhost"} {
		for _, what := range []string{
			"fetch-get", "fetch-get-no-cors", "fetch-simple", "fetch-simple-exec", "fetch-preflighted", "fetch-delete",
			"fetch-no-referrer", "img", "script", "iframe", "sandboxed-iframe", "form", "websocket", "beacon",
		} {
			if name := "careless@" + page + " " + what; !slices.Contains(careless.seen(), name) {
				t.Errorf("%s did not reach even a careless server", name)
			}
		}
	}
	if len(rebound.forwarded()) < 10 {
		t.Errorf("of the rebound page the daemon got only %q", rebound.forwarded())
	}
}

// browse opens address in Chromium and returns what its page reports.
func browse(t *testing.T, p *pages, address string) []result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-port=0",
		"--host-resolver-rules=MAP evil.test 127.0.0.1, MAP rebind.test 127.0.0.2", address)
	// It leaves children behind otherwise.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	select {
	case r := <-p.results:
		return r
	case <-ctx.Done():
		t.Fatal("the page did not report")
		return nil
	}
}

// pages serves the attacking page, and takes its report. Everything else it
// passes on to upstream, as it comes.
type pages struct {
	addr    string
	results chan []result

	mu     sync.Mutex
	passed []string
}

func newPages(t *testing.T, listen, upstream string) *pages {
	t.Helper()
	p := &pages{results: make(chan []result, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /attack.html", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write(attackPage)
	})
	mux.HandleFunc("POST /result", func(_ http.ResponseWriter, r *http.Request) {
		var got []result
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		p.results <- got
	})
	if upstream != "" {
		forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: upstream})
			r.Out.Host = r.In.Host
		}}
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			p.mu.Lock()
			p.passed = append(p.passed, fmt.Sprintf("%s %s %s", r.Method, r.URL, r.Header.Get("Sec-Fetch-Site")))
			p.mu.Unlock()
			forward.ServeHTTP(w, r)
		})
	}
	p.addr = serve(t, listen, mux)
	return p
}

func (p *pages) forwarded() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.passed)
}

// careless is a server that lets everybody do everything.
type careless struct {
	addr string
	mu   sync.Mutex
	by   []string
}

func newCareless(t *testing.T) *careless {
	t.Helper()
	c := &careless{}
	c.addr = serve(t, "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", "*")
		h.Set("Access-Control-Allow-Headers", "*")
		if r.Method == http.MethodOptions {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.by = append(c.by, r.URL.Query().Get("by"))
	}))
	return c
}

func (c *careless) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.by)
}

// serve serves h until the test ends, and returns where.
func serve(t *testing.T, listen string, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	return l.Addr().String()
}
