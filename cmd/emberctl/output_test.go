package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress shows steps of given lengths and compares what is left of them:
// on a terminal, what is to be seen in the end.
func TestProgress(t *testing.T) {
	type step struct {
		name string
		took time.Duration
	}
	for _, tt := range []struct {
		name  string
		tty   bool
		steps []step
		want  string
	}{
		{"quick, nobody watches", false, []step{{"creating", 300 * time.Millisecond}, {"running", time.Second}}, ""},
		{"slow, nobody watches", false, []step{{"creating", time.Second}, {"running", 2 * time.Second}, {"deleting", 0}}, "running…\ndeleting…\n"},
		{"one slow step, nobody watches", false, []step{{"creating", time.Minute}}, "creating…\n"},
		{"quick, on a terminal", true, []step{{"creating", 50 * time.Millisecond}, {"running", time.Second}}, ""},
		{"slow, on a terminal", true, []step{{"fetching", 12340 * time.Millisecond}, {"unpacking", time.Second}}, "fetching… 12.3s\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				m := newMeter(&out, tt.tty)
				for _, s := range tt.steps {
					m.step(s.name)
					time.Sleep(s.took)
				}
				m.stop()
				if got := seen(out.String()); got != tt.want {
					t.Errorf("got %q, want %q (raw %q)", got, tt.want, out.String())
				}
			})
		})
	}
}

// TestProgressClock checks that a terminal is told that time passes.
func TestProgressClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		m := newMeter(&out, true)
		m.step("creating a sandbox")
		time.Sleep(1050 * time.Millisecond)
		m.stop()
		for _, want := range []string{"creating a sandbox… 0.2s", "creating a sandbox… 1.0s"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q was never shown: %q", want, out.String())
			}
		}
	})
}

// seen returns what a terminal shows after s, which may go back to the start of
// its line and clear it.
func seen(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if i := strings.LastIndex(line, "\r\x1b[K"); i >= 0 {
			line = line[i+len("\r\x1b[K"):]
		}
		b.WriteString(line)
	}
	return b.String()
}
