package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
)

func TestUsageRows(t *testing.T) {
	now := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(cpu time.Duration) rest.Stats {
		return rest.Stats{Sandboxes: []rest.Usage{
			{ID: "sb_quiet", LanguagePack: "python", State: "creating", CreatedAt: now.Add(-10 * time.Second), ExpiresAt: now.Add(time.Hour)},
			{ID: "sb_busy", LanguagePack: "shell", State: "running", BootPath: "pool", CreatedAt: now.Add(-20 * time.Second), ExpiresAt: now.Add(time.Minute),
				Execs: 2, MemoryMiB: 256, CPUUS: cpu.Microseconds(), OwnBytes: 3 << 20, SharedBytes: 1 << 19},
		}}
	}
	for name, tt := range map[string]struct {
		before  rest.Stats
		between time.Duration
		cpu     string
	}{
		"since it was created": {rest.Stats{}, 0, "25.0%"},
		"since the last time":  {at(4 * time.Second), 2 * time.Second, "50.0%"},
	} {
		t.Run(name, func(t *testing.T) {
			rows := usageRows(at(5*time.Second), tt.before, tt.between, now)
			want := []string{"sb_busy", "shell", "running", "pool", tt.cpu, "3.0 MiB", "0.5 MiB", "256 MiB", "2", "20s", "in 1m"}
			if !slices.Equal(rows[1], want) {
				t.Errorf("got  %q\nwant %q", rows[1], want)
			}
			want = []string{"sb_quiet", "python", "creating", "-", "0.0%", "-", "-", "0 MiB", "0", "10s", "in 1h"}
			if !slices.Equal(rows[2], want) {
				t.Errorf("got  %q\nwant %q", rows[2], want)
			}
		})
	}
}

// On a terminal it looks again and again, and ends when it is interrupted.
func TestTopGoesOn(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	interrupted := errors.New("interrupted")
	looks := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if looks++; looks == 3 {
			cancel(interrupted)
		}
		_, _ = fmt.Fprintf(w, `{"sandboxes":[{"id":"sb_%d"}],"total":{"vmms":%d,"own_bytes":1048576,"promised_mib":320,"capacity_mib":1024}}`, looks, looks)
	}))
	defer srv.Close()
	var out strings.Builder
	a := &app{stdout: &out, addr: srv.URL}
	cmd := newTopCmd(a)
	cmd.SetContext(ctx)
	if err := a.watchTop(cmd, rest.Stats{}, time.Millisecond); !errors.Is(err, interrupted) && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	screens := strings.Split(out.String(), clearScreen)
	if len(screens) < 4 || !strings.Contains(screens[3], "2 VMMs use 1.0 MiB and share -; 320 of 1024 MiB are promised") || !strings.Contains(screens[3], "sb_2") {
		t.Errorf("it showed %q", screens)
	}
}
