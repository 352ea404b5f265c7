package client

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestFollow(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "follow=true&after=5f3a-1" {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = w.Write([]byte(":\n\nevent: gap\ndata: {\"missed\":3}\n\n:\n\nid: 5f3a-5\nevent: exec\ndata: {\"id\":\"5f3a-5\",\"event\":\"exec\",\"reason\":\"ok\"}\n\n"))
	}))
	defer srv.Close()
	var got []Event
	for event, err := range New(srv.URL).Follow(t.Context(), "5f3a-1") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, event)
	}
	if len(got) != 2 || got[0].Gap == nil || got[0].Gap.Missed != 3 || got[1].Gap != nil || got[1].ID != "5f3a-5" || got[1].Reason != "ok" {
		t.Errorf("got %+v", got)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("event: ready\ndata: {\"event\":\"ready\"}\n\n"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range New(srv.URL).Follow(ctx, "") {
		last = err
		cancel()
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("got %v", last)
	}
}

func TestFollowSaysWhyNot(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"error":"an API key is needed","code":"unauthorized"}`))
	}))
	defer srv.Close()
	for _, err := range New(srv.URL).Follow(t.Context(), "") {
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != "unauthorized" {
			t.Errorf("got %v", err)
		}
	}
}

func TestLongEventIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"one line":   "data: " + strings.Repeat("x", maxFrame) + "\n\n",
		"many lines": strings.Repeat("data: x\n", maxFrame/8+1) + "\n",
	} {
		if _, err := readEvent(bufio.NewReader(strings.NewReader(text))); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}
