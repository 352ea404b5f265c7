package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emberd/emberd/client"
)

// Requests that change something are traced, with the steps of a create and how
// it ended.
func TestTraces(t *testing.T) {
	var mu sync.Mutex
	var names, facts []string
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var doc struct {
			ResourceSpans []struct {
				ScopeSpans []struct {
					Spans []struct {
						Name       string
						Attributes []struct {
							Key   string
							Value struct{ StringValue string }
						}
					}
				}
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&doc); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, span := range doc.ResourceSpans[0].ScopeSpans[0].Spans {
			names = append(names, span.Name)
			for _, a := range span.Attributes {
				facts = append(facts, span.Name+" "+a.Key+"="+a.Value.StringValue)
			}
		}
	}))
	defer collector.Close()
	cfg := fakeConfig(t)
	cfg.TraceEndpoint = collector.URL
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()
	<-d.Ready()
	c := client.New(d.Addr())
	id, err := c.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), id, client.Program{Code: "exit 3"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"guest", "boot", "create-sandbox", "exec", "delete-sandbox"}; !slices.Equal(names, want) {
		t.Errorf("spans %q, want %q", names, want)
	}
	for _, want := range []string{
		"create-sandbox emberd.id=" + id, "create-sandbox emberd.pack=shell", "create-sandbox emberd.boot_path=cold-boot",
		"exec emberd.id=" + id, "exec emberd.result=failed", "delete-sandbox emberd.id=" + id,
	} {
		if !slices.Contains(facts, want) {
			t.Errorf("%s is missing in %q", want, facts)
		}
	}
}

func TestTraceEndpointIsChecked(t *testing.T) {
	cfg := fakeConfig(t)
	cfg.TraceEndpoint = "localhost:4318"
	if d, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "localhost:4318") {
		if d != nil {
			_ = d.Close(t.Context())
		}
		t.Errorf("got %v", err)
	}
}
