package agent_test

import (
	"log/slog"
	"time"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// slowWriter takes longer over each write than the agent lingers.
type slowWriter struct{ n int }

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(60 * time.Millisecond)
	w.n += len(p)
	return len(p), nil
}
