package flatkeyed_test

import (
	"testing"

	"github.com/emberd/emberd/internal/x/flatkeyed"
)

func TestValue(t *testing.T) {
	const events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
	tests := map[string]struct {
		events, name string
		want         uint64
	}{
		"counted":        {events, "oom_kill", 2},
		"not yet":        {events, "oom_group_kill", 0},
		"the whole name": {events, "oom", 3},
		"first line":     {"max 7\n", "max", 7},
		"last line open": {"max 5", "max", 5},
		"unknown":        {events, "oom_score", 0},
		"nothing":        {"", "max", 0},
		"name alone":     {"max", "max", 0},
		"no number":      {"max many\n", "max", 0},
	}
	for name, tt := range tests {
		if got := flatkeyed.Value([]byte(tt.events), tt.name); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
