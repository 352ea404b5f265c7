package httpapi

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry"
	"github.com/emberd/emberd/internal/testenv"
)

// operated returns the API with telemetry whose clock stands still.
func operated() (*API, *telemetry.Telemetry) {
	at := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	a := unguarded(&fakeEngine{}, nil, &testenv.Log{})
	told := telemetry.New(prometheus.NewRegistry(), "1.2.3", func() time.Time { return at })
	a.telemetry = told
	return a, told
}

func TestMetrics(t *testing.T) {
	a, _ := operated()
	h := &gate{a, Access{}}
	request(t, h, "GET", "/sandboxes/"+knownID, "")
	request(t, h, "GET", "/sandboxes/sb_000000000000", "")
	request(t, h, "GET", "/nothing", "")
	rec := request(t, h, "GET", "/metrics", "")
	if got := rec.Header().Get("Content-Type"); rec.Code != 200 || !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		t.Fatalf("status %d, %s", rec.Code, got)
	}
	for _, want := range []string{
		`emberd_build_info{go="go`, `version="1.2.3"} 1`,
		`emberd_http_requests_total{route="GET /sandboxes/{id}",status="200"} 1`,
		`emberd_http_requests_total{route="GET /sandboxes/{id}",status="404"} 1`,
		`emberd_http_requests_total{route="none",status="404"} 1`,
	} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("%s is missing in\n%s", want, rec.Body)
		}
	}
	if strings.Contains(rec.Body.String(), knownID) {
		t.Error("a metric names a sandbox")
	}
}

func TestEventsAreListed(t *testing.T) {
	a, told := operated()
	h := &gate{a, Access{}}
	if rec := request(t, h, "GET", "/events", ""); rec.Body.String() != `{"events":[]}`+"\n" {
		t.Errorf("got %s", rec.Body)
	}
	told.Publish(sandbox.Event{Kind: sandbox.EventReady, Sandbox: knownID, Pack: "python", BootPath: sandbox.Pooled, Took: 4 * time.Millisecond})
	told.Publish(sandbox.Event{Kind: sandbox.EventExec, Sandbox: knownID, Pack: "python", Reason: "ok", Took: 14 * time.Millisecond, Ran: time.Millisecond, Warm: true})
	run, _, _ := strings.Cut(told.Since("").Last, "-")
	first := `{"id":"` + run + `-1","seq":1,"time":"2025-01-02T03:04:05Z","event":"ready","sandbox_id":"sb_a1b2c3d4e5f6","language_pack":"python","boot_path":"pool","duration_ms":4}`
	second := `{"id":"` + run + `-2","seq":2,"time":"2025-01-02T03:04:05Z","event":"exec","sandbox_id":"sb_a1b2c3d4e5f6","language_pack":"python","reason":"ok","duration_ms":14,"start":"warm"}`
	for path, want := range map[string]string{
		"/events":                       `{"events":[` + first + `,` + second + `]}`,
		"/events?after=" + run + "-1":   `{"events":[` + second + `]}`,
		"/events?after=" + run + "-2":   `{"events":[]}`,
		"/events?after=0badcafe-1":      `{"events":[` + first + `,` + second + `],"restarted":true}`,
		"/events?follow=false&after=no": `{"events":[` + first + `,` + second + `],"restarted":true}`,
		"/events?follow=maybe":          `{"error":"follow is \"maybe\"; it can be true or false","code":"invalid_request"}`,
	} {
		if got := request(t, h, "GET", path, "").Body.String(); got != want+"\n" {
			t.Errorf("%s: got  %s\nwant %s", path, got, want)
		}
	}
}

// frames reads server-sent events from a server of a.
func frames(t *testing.T, a *API, lastEventID string) (next func() string, status int) {
	t.Helper()
	srv := httptest.NewServer(&gate{a, Access{}})
	t.Cleanup(srv.Close)
	r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/events?follow=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", lastEventID)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type %s", got)
	}
	in := bufio.NewReader(resp.Body)
	return func() string {
		var frame strings.Builder
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return "the end"
			}
			if line == "\n" {
				return frame.String()
			}
			frame.WriteString(line)
		}
	}, resp.StatusCode
}

func TestEventsAreFollowed(t *testing.T) {
	a, told := operated()
	told.Publish(sandbox.Event{Kind: sandbox.EventCreated, Sandbox: knownID})
	next, status := frames(t, a, "")
	if got := next(); status != 200 || !strings.Contains(got, "event: created\n") || !strings.Contains(got, "-1\n") {
		t.Errorf("status %d: %s", status, got)
	}
	for i := range 3 {
		told.Publish(sandbox.Event{Kind: sandbox.EventReady, Sandbox: knownID})
		if got := next(); !strings.Contains(got, "event: ready\n") || !strings.Contains(got, fmt.Sprintf(`"seq":%d,`, i+2)) {
			t.Errorf("got %s", got)
		}
	}
	told.Publish(sandbox.Event{Kind: sandbox.EventDeleted, Sandbox: knownID})
	told.Close()
	if got := next(); !strings.Contains(got, "event: deleted\n") {
		t.Errorf("got %s", got)
	}
	if got := next(); got != "the end" {
		t.Errorf("a closed stream goes on: %s", got)
	}
}

func TestGapIsTold(t *testing.T) {
	a, told := operated()
	told.Publish(sandbox.Event{Kind: sandbox.EventCreated, Sandbox: knownID})
	last := told.Since("").Last
	for range 1030 {
		told.Publish(sandbox.Event{Kind: sandbox.EventReady, Sandbox: knownID})
	}
	next, _ := frames(t, a, last)
	if got := next(); got != "event: gap\ndata: {\"missed\":6}\n" {
		t.Errorf("got %s", got)
	}
	if got := next(); !strings.Contains(got, `"seq":8,`) {
		t.Errorf("got %s", got)
	}
	next, _ = frames(t, a, "0badcafe-3")
	if got := next(); got != "event: gap\ndata: {\"missed\":7,\"restarted\":true}\n" {
		t.Errorf("got %s", got)
	}
}

func TestStats(t *testing.T) {
	want := `{"sandboxes":[{"id":"sb_a1b2c3d4e5f6","language_pack":"python","state":"running","boot_path":"pool","created_at":"2025-01-02T03:04:05Z","expires_at":"2025-01-02T04:04:05Z",` +
		`"execs":1,"memory_mib":256,"pid":4711,"cpu_us":1500,"own_bytes":4096,"shared_bytes":8192}],` +
		`"total":{"vmms":2,"own_bytes":5000,"shared_bytes":9000,"promised_mib":320,"capacity_mib":7000}}`
	if got := request(t, newAPI(&fakeEngine{}), "GET", "/stats", "").Body.String(); got != want+"\n" {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A follower that does not read is let go, and nobody waits for it meanwhile.
func TestSlowFollowerIsLetGo(t *testing.T) {
	a, told := operated()
	a.writeGrace = 100 * time.Millisecond
	left := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		(&gate{a, Access{}}).ServeHTTP(w, r)
	}))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "GET /events?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		began := time.Now()
		for range 100 {
			told.Publish(sandbox.Event{Kind: sandbox.EventReady, Sandbox: knownID, Pack: "python"})
		}
		if took := time.Since(began); took > time.Second {
			t.Fatalf("to publish 100 events took %v", took)
		}
		select {
		case <-left:
			return
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("the follower is still waited for")
		}
	}
}
