package main

import (
	"fmt"
	"io"
	"log/slog"
)

// logging is what is logged, and how.
type logging struct {
	level  slog.Level
	format logFormat
}

// logger returns a logger that writes to w.
func (l logging) logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: l.level}
	if l.format == logJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// logFormat is how a record looks: for people, or for programs.
type logFormat string

const (
	logText logFormat = "text"
	logJSON logFormat = "json"
)

// MarshalText implements [encoding.TextMarshaler].
func (f logFormat) MarshalText() ([]byte, error) { return []byte(f), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (f *logFormat) UnmarshalText(text []byte) error {
	switch format := logFormat(text); format {
	case logText, logJSON:
		*f = format
		return nil
	}
	return fmt.Errorf("%q is neither %s nor %s", text, logText, logJSON)
}
