package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry/trace"
)

// statusClientClosed is nginx's code for a client that went away. Only the log
// and a client that closed no more than its sending half get to see it.
const statusClientClosed = 499

// retryAfter returns how many seconds a client is told to wait before it tries
// again: for a daemon that is shutting down, which may be one that is being
// restarted, for one that starts, and for room, which there is as soon as
// somebody else is done. It is "" for errors that waiting does not mend.
func retryAfter(code sandbox.Code) string {
	switch code {
	case sandbox.CodeClosing:
		return "5"
	case sandbox.CodeQuota, sandbox.CodeCapacity, sandbox.CodeStarting, sandbox.CodeRate:
		return "1"
	}
	return ""
}

// httpError is an error with a status other than that of its code.
type httpError struct {
	status int
	err    *sandbox.Error
}

func (e *httpError) Error() string { return e.err.Error() }
func (e *httpError) Unwrap() error { return e.err }

// statusOf returns the status that code is answered with.
func statusOf(code sandbox.Code) int {
	switch code {
	case sandbox.CodeInvalid, sandbox.CodeUnknownPack:
		return http.StatusBadRequest
	case sandbox.CodeUnauthorized:
		return http.StatusUnauthorized
	case sandbox.CodeForbidden:
		return http.StatusForbidden
	case sandbox.CodeNotFound:
		return http.StatusNotFound
	case sandbox.CodeEnded, sandbox.CodeNoEgress:
		return http.StatusConflict
	case sandbox.CodeOutputGone:
		return http.StatusGone
	case sandbox.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case sandbox.CodeLost:
		return http.StatusBadGateway
	case sandbox.CodeQuota, sandbox.CodeRate:
		return http.StatusTooManyRequests
	case sandbox.CodeKeyReused:
		return http.StatusUnprocessableEntity
	case sandbox.CodeBoot, sandbox.CodeEgress, sandbox.CodeStarting, sandbox.CodeClosing, sandbox.CodeCapacity:
		return http.StatusServiceUnavailable
	case sandbox.CodeDiskFull:
		return http.StatusInsufficientStorage
	case sandbox.CodeCanceled:
		return statusClientClosed
	default:
		return http.StatusInternalServerError
	}
}

// handler returns the handler of one route.
func (a *API) handler(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, span := a.traced(rt, r)
		out, err := rt.serve(w, r)
		span.End(trace.Code(err))
		switch {
		case err != nil:
			a.fail(w, r, err)
		case out == nil:
			a.send(w, r, rt.status, nil)
		default:
			a.write(w, r, rt.status, out)
		}
	})
}

// traced returns r with a span if it is to be traced: what changes nothing is asked
// for again and again, and takes no time.
func (a *API) traced(rt route, r *http.Request) (*http.Request, *trace.Span) {
	if a.tracer == nil || rt.method == http.MethodGet {
		return r, nil
	}
	ctx, span := a.tracer.Request(r.Context(), rt.id, r.Header.Get("Traceparent"))
	span.Set("emberd.id", r.PathValue("id"))
	return r.WithContext(ctx), span
}

// fail answers r with err and logs what the answer does not tell.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	if revoked(r) {
		err = errRevoked // which made everything else fail
		w.Header().Set("Connection", "close")
	}
	code, msg := sandbox.Public(err)
	// What a client that goes away makes fail is neither a fault nor news.
	if code != sandbox.CodeCanceled && r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		code, msg = sandbox.CodeCanceled, "the request was canceled"
	}
	status := statusOf(code)
	if e, ok := errors.AsType[*httpError](err); ok {
		status = e.status
	}
	level := slog.LevelDebug
	switch code {
	case sandbox.CodeInternal, sandbox.CodeDiskFull:
		level = slog.LevelError
	case sandbox.CodeBoot, sandbox.CodeLost:
		level = slog.LevelWarn
	}
	a.log.Log(r.Context(), level, "request failed",
		"route", r.Pattern, "sandbox_id", r.PathValue("id"), "status", status, "code", code, "err", err)
	if code == sandbox.CodeUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if wait := retryAfter(code); wait != "" {
		w.Header().Set("Retry-After", wait)
	}
	answer := rest.Error{Message: msg, Code: string(code)}
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		answer.FirstOffset = e.FirstOffset
	}
	a.write(w, r, status, answer)
}

// document is an answer that is no JSON.
type document struct {
	contentType string
	body        []byte
}

// stream is an answer that is written as it comes to be.
type stream struct {
	contentType string
	write       func(out *answer) error
}

// write answers r with v, as JSON unless its type says otherwise. That a client
// does not take it all is its own loss.
func (a *API) write(w http.ResponseWriter, r *http.Request, status int, v any) {
	switch v := v.(type) {
	case execAnswer:
		w.Header().Set("Content-Type", jsonType)
		_ = v.writeTo(a.begin(w, r, status))
	case stream:
		w.Header().Set("Content-Type", v.contentType)
		_ = v.write(a.begin(w, r, status))
	case document:
		w.Header().Set("Content-Type", v.contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(v.body)))
		_, _ = a.begin(w, r, status).Write(v.body)
	default:
		b, err := marshal(v)
		if err != nil {
			panic(err) // the API's types hold nothing that JSON cannot
		}
		a.send(w, r, status, b)
	}
}

// send answers r with body, which is JSON or nothing.
func (a *API) send(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	if body != nil {
		w.Header().Set("Content-Type", jsonType)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	_, _ = a.begin(w, r, status).Write(body)
}

// begin begins the answer to r and returns what writes the rest of it.
func (a *API) begin(w http.ResponseWriter, r *http.Request, status int) *answer {
	a.telemetry.Answered(r.Pattern, status)
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	out := &answer{w: w, r: r, status: status, conn: http.NewResponseController(w), grace: a.writeGrace}
	if revoked(r) {
		out.grace = lastWords
	}
	out.await()
	w.WriteHeader(status)
	return out
}

// answer writes the body of an answer in pieces. A client that does not take one
// is its own loss: the connection is closed, once it has been waited for long
// enough.
type answer struct {
	w      http.ResponseWriter
	r      *http.Request
	status int
	conn   *http.ResponseController
	grace  time.Duration
}

func (a *answer) await() { _ = a.conn.SetWriteDeadline(time.Now().Add(a.grace)) }

func (a *answer) Write(p []byte) (int, error) {
	written := 0
	for piece := range slices.Chunk(p, writePiece) {
		a.await()
		if a.status < 300 && revoked(a.r) {
			panic(http.ErrAbortHandler) // half an answer must not look like one
		}
		n, err := a.w.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}
