package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
)

func TestLogFormat(t *testing.T) {
	var l logging
	for _, tt := range []struct {
		format string
		right  func(line string) bool
	}{
		{"text", func(line string) bool {
			return strings.HasPrefix(line, "time=") && strings.Contains(line, `level=WARN msg="it is late" pack=python`)
		}},
		{"json", func(line string) bool {
			var record struct{ Level, Msg, Pack string }
			return json.Unmarshal([]byte(line), &record) == nil && record.Level == "WARN" && record.Msg == "it is late" && record.Pack == "python"
		}},
	} {
		if err := l.format.UnmarshalText([]byte(tt.format)); err != nil {
			t.Fatal(err)
		}
		l.level = slog.LevelWarn
		var b bytes.Buffer
		log := l.logger(&b)
		log.Info("it is early")
		log.Warn("it is late", "pack", "python")
		if line, rest, _ := strings.Cut(b.String(), "\n"); rest != "" || !tt.right(line) {
			t.Errorf("%s: %s", tt.format, &b)
		}
	}
	if err := l.format.UnmarshalText([]byte("xml")); err == nil || l.format != logJSON {
		t.Errorf("xml: %v, %s", err, l.format)
	}
}
