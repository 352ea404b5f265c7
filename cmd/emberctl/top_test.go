package main

import (
	"slices"
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
