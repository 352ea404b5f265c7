package http

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/apikey"
)

// TestKeyForEveryOperation walks the published document: with a key in use every
// operation but the probe of health asks for it, on loopback too.
func TestKeyForEveryOperation(t *testing.T) {
	s := start(t, "/bin/true")
	id := s.create(t)
	key, _ := s.createKey(t)
	var document struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	resp := s.ask(t, http.MethodGet, "/openapi.json", key)
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	operations := 0
	for path, methods := range document.Paths {
		for method := range methods {
			operations++
			method, path := strings.ToUpper(method), strings.ReplaceAll(path, "{id}", id)
			for _, wrong := range []string{"", "emb_wrong", key + "x"} {
				resp := s.ask(t, method, path, wrong)
				_ = resp.Body.Close()
				if refused := resp.StatusCode == http.StatusUnauthorized; refused == (path == "/healthz") {
					t.Errorf("%s %s with the key %q: %s", method, path, wrong, resp.Status)
				}
			}
		}
	}
	if operations < 9 {
		t.Errorf("the document has %d operations", operations)
	}
	if _, err := s.client.Get(t.Context(), id); err != nil {
		t.Errorf("the sandbox: %v", err)
	}
}

// TestRevokedDuringAnswer revokes a key while what it asked for is on its way.
// A second later nothing more of it comes.
func TestRevokedDuringAnswer(t *testing.T) {
	s := start(t, "")
	id := s.create(t)
	key, made := s.createKey(t)
	const code, size = "head -c 8000000 /dev/zero", 8_000_000
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST /sandboxes/%s/exec HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n{\"code\":%q}",
		id, s.addr, key, len(code)+len(`{"code":""}`), code)
	if err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q, %v", line, err)
	}
	if err := apikey.Revoke(s.data.Keys(), made.ID); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// What the kernel had taken in before is all there is.
	if n, err := io.Copy(io.Discard, in); n >= size || os.IsTimeout(err) {
		t.Errorf("%d bytes came after the key was revoked, %v", n, err)
	}
	if _, err := client.New("http://"+s.addr, client.WithAPIKey(key)).List(context.Background()); err == nil {
		t.Error("the key is still good")
	}
}

// TestKeysAtRest looks for a key that was used in everything the daemon wrote.
func TestKeysAtRest(t *testing.T) {
	s := start(t, "/bin/true")
	key, made := s.createKey(t)
	resp := s.ask(t, http.MethodGet, "/sandboxes", key)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	secret := key[strings.LastIndexByte(key, '_')+1:]
	found := false
	err := filepath.WalkDir(filepath.Dir(string(s.data)), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || strings.Contains(string(b), made.ID)
		if strings.Contains(string(b), secret) {
			t.Errorf("%s holds the key", path)
		}
		return err
	})
	if err != nil || !found {
		t.Errorf("the key's id was found: %v, %v", found, err)
	}
}

// createKey makes a key, and returns when the daemon asks for it.
func (s *server) createKey(t *testing.T) (string, apikey.Key) {
	t.Helper()
	key, made, err := apikey.Create(s.data.Keys(), "")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp := s.ask(t, http.MethodGet, "/info", "")
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusUnauthorized {
			return key, made
		}
		if time.Now().After(deadline) {
			t.Fatal("the key is not asked for")
		}
	}
}

// ask sends a request with a key, if there is one. The caller closes the body.
func (s *server) ask(t *testing.T, method, path, key string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
