package real

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/daemon"
)

// Eight creates at a time, five times over, are eight sandboxes; what comes on top
// is refused with a time to wait. They are restores, of the pack that has nothing to
// start behind them, as eight boots take a minute where one CPU emulates them all.
// How long they take is logged: it is within 15 s each on a host that does nothing
// else.
func TestContention(t *testing.T) {
	const (
		together = 8
		rounds   = 5
	)
	h := newHost(t, patient, func(c *daemon.Config) {
		c.Templates, c.Shells = true, 2
		c.Capacity.Sandboxes, c.Capacity.MemoryMiB = together, together*c.Limits.Default.PromisedMiB()
	})
	if _, err := h.buildTemplate(t, "shell"); err != nil {
		t.Fatal(err)
	}
	h.checkRefused(t, rest.CreateRequest{LanguagePack: "shell", Limits: rest.Limits{MemoryMiB: h.cfg.Capacity.MemoryMiB}}, http.StatusServiceUnavailable)
	var took []time.Duration
	for range rounds {
		ids := make([]string, together)
		times := make([]time.Duration, together)
		var creates sync.WaitGroup
		for i := range together {
			creates.Go(func() {
				began := time.Now()
				id, err := h.Create(t.Context(), "shell")
				if err != nil {
					t.Errorf("create %d: %v", i, err)
				}
				ids[i], times[i] = id, time.Since(began)
			})
		}
		creates.Wait()
		took = append(took, times...)
		if t.Failed() {
			break
		}
		for range 2 {
			h.checkRefused(t, rest.CreateRequest{LanguagePack: "shell"}, http.StatusTooManyRequests)
		}
		for i, id := range ids {
			if got := h.run(t, id, fmt.Sprint("echo ", i)); got != fmt.Sprintln(i) {
				t.Errorf("exec %d: %q", i, got)
			}
		}
		for _, id := range ids {
			if err := h.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		h.awaitRoom(t)
	}
	slices.Sort(took)
	t.Logf("%d creates: p50 %v, slowest %v", len(took), took[len(took)/2], took[len(took)-1])
}

// awaitRoom waits until nothing counts against the daemon's capacity.
func (h *host) awaitRoom(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if len(h.records(t)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("deleted sandboxes are not gone")
		}
	}
}

// checkRefused fails the test unless a create is refused with that status, at
// once, and told when to come again.
func (h *host) checkRefused(t *testing.T, req rest.CreateRequest, status int) {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	resp, err := http.Post(fmt.Sprintf("http://%s/sandboxes", h.addr), "application/json", bytes.NewReader(body)) //nolint:noctx // it is answered at once
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	after, errAfter := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || errAfter != nil || resp.StatusCode != status || after != 1 {
		t.Errorf("status %d, Retry-After %q, %s, %v; want %d", resp.StatusCode, resp.Header.Get("Retry-After"), answer, err, status)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a refusal took %v", took)
	}
}
