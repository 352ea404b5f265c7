package http

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// How many slow clients there are of each kind, for how long, and what they may
// do to the others.
const (
	slowHeaders, slowBodies, neverRead = 1000, 200, 200

	attackTime = 25 * time.Second
	goneWithin = 30 * time.Second
	maxGrowth  = 64 << 20
	// maxSlower is the bar; noise is what a host does that other tests keep busy.
	maxSlower = 2
	noise     = 25 * time.Millisecond
)

// TestSlowClients has more than a thousand clients send their headers and bodies
// byte by byte, and read nothing, and measures what a client of good will has of
// it.
func TestSlowClients(t *testing.T) {
	needs(t)
	s := start(t, "/bin/true")
	id := s.create(t)
	_, quiet, memory := s.measure(t, 5*time.Second, id)
	files := s.fds(t)

	ctx, stop := context.WithTimeout(t.Context(), attackTime)
	defer stop()
	var attackers sync.WaitGroup
	var conns connections
	for kind, n := range map[string]int{"header": slowHeaders, "body": slowBodies, "read": neverRead} {
		for range n {
			attackers.Go(func() {
				for ctx.Err() == nil {
					conns.attack(ctx, kind, s.addr, id)
				}
			})
		}
	}
	time.Sleep(2 * time.Second) // until all are there
	attacked := s.fds(t)
	requests, loaded, most := s.measure(t, attackTime-4*time.Second, id)
	grew := most - memory
	attackers.Wait()
	// From here on they neither send nor read nor close.
	began := time.Now()
	for s.fds(t) > files+5 {
		if time.Since(began) > goneWithin {
			t.Errorf("%v after the attack there are %d connections left", goneWithin, s.fds(t)-files)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	gone := time.Since(began)
	conns.close()

	t.Logf("%d connections at a time; %d requests beside them; p99 %v, before %v; daemon grew by %d MiB; all gone after %v",
		attacked-files, requests, loaded, quiet, grew>>20, gone)
	if attacked-files < (slowHeaders+slowBodies+neverRead)/2 {
		t.Errorf("only %d connections were open: that was no attack", attacked-files)
	}
	if loaded > maxSlower*quiet+noise {
		t.Errorf("p99 is %v, before it was %v", loaded, quiet)
	}
	if grew > maxGrowth {
		t.Errorf("the daemon grew by %d MiB", grew>>20)
	}
}

// measure sends the requests of a client of good will for some time, each on a
// connection of its own, and returns how many there were, the 99th percentile of
// what they took, and how much memory the daemon had at most.
func (s *server) measure(t *testing.T, d time.Duration, id string) (n int, p99 time.Duration, memory int64) {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	var took []time.Duration
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		began := time.Now()
		resp, err := hc.Get("http://" + s.addr + "/sandboxes/" + id)
		if err != nil {
			t.Errorf("a client of good will: %v", err)
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("a client of good will got %s", resp.Status)
		}
		took = append(took, time.Since(began))
		memory = max(memory, s.rss(t))
	}
	slices.Sort(took)
	return len(took), took[len(took)*99/100], memory
}

// connections are those that attackers hold.
type connections struct {
	mu  sync.Mutex
	all []net.Conn
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.all {
		_ = conn.Close()
	}
}

// attack opens a connection and keeps it busy, slowly, until the server closes
// it or ctx ends. In the latter case it stays open.
func (c *connections) attack(ctx context.Context, kind, addr, id string) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return
	}
	start, more := "GET /info HTTP/1.1\r\nHost: "+addr+"\r\nX: ", "a"
	switch kind {
	case "body":
		start = fmt.Sprintf("POST /sandboxes/%s/exec HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n\r\n{\"code\":\"", id, addr)
	case "read":
		start = strings.Repeat("GET /openapi.json HTTP/1.1\r\nHost: "+addr+"\r\n\r\n", 500)
		more = "GET /openapi.json HTTP/1.1\r\nHost: " + addr + "\r\n\r\n"
	}
	for _, err = io.WriteString(conn, start); err == nil; _, err = io.WriteString(conn, more) {
		select {
		case <-ctx.Done():
			c.mu.Lock()
			defer c.mu.Unlock()
			c.all = append(c.all, conn)
			return
		case <-time.After(time.Second):
		}
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	_ = conn.Close()
}
