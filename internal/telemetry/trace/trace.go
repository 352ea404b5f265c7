// Package trace tells where the time of a request goes, to a collector of
// OpenTelemetry.
//
// The one idea: a span travels in the context. Who does a step of a request starts
// a span below the one in the context, and where there is none, because nobody
// traces, all of it costs a look into the context.
//
// The invariant: a request never waits for a collector. Spans that end go into a
// queue that is bounded; what it cannot take is dropped, and counted. Spans carry
// names, ids and codes, never code, output or errors' texts.
//
// It speaks OTLP over HTTP in its JSON form (opentelemetry-proto, "OTLP/HTTP") and
// the W3C's traceparent, and no more than that: the whole of OpenTelemetry would
// bring gRPC into a daemon that runs as root, and half as much again of program.
package trace

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// Span is one step, from its start to its end. A nil span is one that nobody
// wants, and takes the same calls. It may be used by several goroutines.
type Span struct {
	to     *Exporter
	trace  [16]byte
	id     [8]byte
	parent [8]byte // zero if there is none
	name   string
	server bool
	began  time.Time

	mu         sync.Mutex
	ended      time.Time
	attributes []attribute
	code       string // of the error that it ended with
}

type attribute struct{ key, value string }

type spanKey struct{}

// From returns the span that ctx is about, nil if there is none.
func From(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// Start starts a span below the one that ctx is about. The caller ends it.
func Start(ctx context.Context, name string) (context.Context, *Span) {
	above := From(ctx)
	if above == nil {
		return ctx, nil
	}
	s := above.to.newSpan(name)
	s.trace, s.parent = above.trace, above.id
	return context.WithValue(ctx, spanKey{}, s), s
}

// Request starts the span of a request. If its sender traces too, the span is a
// part of that trace, or there is none because the sender does not want it: that is
// for traceparent, which may be empty, to tell. The caller ends it.
func (e *Exporter) Request(ctx context.Context, name, traceparent string) (context.Context, *Span) {
	s := e.newSpan(name)
	s.server = true
	if trace, parent, sampled, ok := parseParent(traceparent); ok {
		if !sampled {
			return ctx, nil
		}
		s.trace, s.parent = trace, parent
	} else {
		_, _ = rand.Read(s.trace[:]) // it cannot fail
	}
	return context.WithValue(ctx, spanKey{}, s), s
}

func (e *Exporter) newSpan(name string) *Span {
	s := &Span{to: e, name: name, began: e.now()}
	_, _ = rand.Read(s.id[:]) // it cannot fail
	return s
}

// Set adds an attribute.
func (s *Span) Set(key, value string) {
	if s == nil || value == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attributes = append(s.attributes, attribute{key, value})
}

// End ends the span and hands it over; code is that of the error that the step
// ended with, "" if it did not.
func (s *Span) End(code string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	first := s.ended.IsZero()
	if first {
		s.ended, s.code = s.to.now(), code
	}
	s.mu.Unlock()
	if first {
		s.to.hand(s)
	}
}

// Code is what [Span.End] takes of a step that ended with err.
func Code(err error) string {
	if err == nil {
		return ""
	}
	code, _ := sandbox.Public(err)
	return string(code)
}

// parseParent parses the header traceparent of the W3C's Trace Context.
func parseParent(header string) (trace [16]byte, parent [8]byte, sampled, ok bool) {
	parts := strings.Split(header, "-")
	// Versions to come may add parts; 255 is none.
	if len(parts) < 4 || len(parts[0]) != 2 || parts[0] == "ff" || parts[0] == "00" && len(parts) != 4 {
		return trace, parent, false, false
	}
	var version, flags [1]byte
	ok = decodeHex(version[:], parts[0]) && decodeHex(trace[:], parts[1]) && decodeHex(parent[:], parts[2]) && decodeHex(flags[:], parts[3])
	ok = ok && trace != [16]byte{} && parent != [8]byte{}
	return trace, parent, flags[0]&1 != 0, ok
}

// decodeHex decodes lower-case hexadecimal digits that fill to exactly.
func decodeHex(to []byte, digits string) bool {
	if len(digits) != 2*len(to) || strings.ToLower(digits) != digits {
		return false
	}
	_, err := hex.Decode(to, []byte(digits))
	return err == nil
}
