package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// gate is the API behind one listener.
type gate struct {
	*API
	access Access
}

// ServeHTTP answers one request: first whether it may come in, then what it
// asks for.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer g.rescue(w, r)
	if r.ContentLength != 0 {
		// Of a body that nobody reads net/http reads some all the same.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.bodyGrace))
	}
	if len(r.TransferEncoding) > 0 {
		// net/http does not tell whether there was a length as well. Where
		// another program may have gone by that, what follows on the connection
		// could be what somebody smuggled.
		w.Header().Set("Connection", "close")
	}
	_, pattern := g.mux.Handler(r)
	// The mux would answer an unclean path with a redirect, in HTML.
	if p := r.URL.EscapedPath(); path.Clean(p) != p {
		pattern = ""
	}
	err := g.access.check(r)
	if err == nil && !g.open[pattern] {
		var leave func()
		if r, leave, err = g.access.admit(w, r); err == nil {
			defer leave()
			// What a daemon that starts would answer could be wrong a moment later.
			if ready := g.ready(); errors.Is(ready, sandbox.ErrStarting) {
				err = ready
			}
			if !g.rates.allow(tenant(r), time.Now()) {
				err = errRate
			}
		}
	}
	switch {
	case err != nil:
		// The body of a client that is not let in is not waited for.
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
		}
		g.fail(w, r, err)
	case pattern == "":
		g.noRoute(w, r)
	default:
		g.mux.ServeHTTP(w, r)
	}
}

// rescue answers a request whose handler panicked. The daemon goes on: other
// sandboxes are not to suffer for one request's bug.
func (a *API) rescue(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	a.log.Error("request panicked", "panics", a.panics.Add(1), "method", r.Method, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	a.fail(w, r, &sandbox.Error{Code: sandbox.CodeInternal, Message: "internal error"})
}

// noRoute answers what the mux has no handler for, in JSON and with the mux's
// own status: 404, or 405 with the methods that there are.
func (a *API) noRoute(w http.ResponseWriter, r *http.Request) {
	h, _ := a.mux.Handler(r)
	v := verdict{http.Header{}}
	h.ServeHTTP(v, r)
	allow := v.Header().Get("Allow")
	switch {
	case allow != "" && r.Method == http.MethodOptions:
		w.Header().Set("Allow", allow)
		w.WriteHeader(http.StatusNoContent)
	case allow != "":
		w.Header().Set("Allow", allow)
		a.fail(w, r, &httpError{http.StatusMethodNotAllowed, sandbox.Invalid("method not allowed")})
	default:
		a.fail(w, r, &sandbox.Error{Code: sandbox.CodeNotFound, Message: "no such route"})
	}
}

// verdict takes an answer for its headers alone.
type verdict struct{ header http.Header }

func (v verdict) Header() http.Header         { return v.header }
func (v verdict) Write(b []byte) (int, error) { return len(b), nil }
func (v verdict) WriteHeader(int)             {}
