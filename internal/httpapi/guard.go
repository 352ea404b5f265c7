package httpapi

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"runtime/debug"
	"strings"

	"github.com/emberd/emberd/internal/sandbox"
)

// ServeHTTP answers one request.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer a.rescue(w, r)
	if err := refuse(r); err != nil {
		a.fail(w, r, err)
		return
	}
	// The mux would answer an unclean path with a redirect, in HTML.
	p := r.URL.EscapedPath()
	if _, pattern := a.mux.Handler(r); pattern == "" || path.Clean(p) != p {
		a.noRoute(w, r)
		return
	}
	a.mux.ServeHTTP(w, r)
}

// rescue answers a request whose handler panicked. The daemon goes on: other
// sandboxes are not to suffer for one request's bug.
func (a *api) rescue(w http.ResponseWriter, r *http.Request) {
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

// refuse returns an error for a request that a web page may have made a browser
// send. On loopback the API asks for no credentials, so any page that the user
// visits could otherwise run code:
//
//   - A page of another origin can send a POST without asking first. Browsers
//     mark such requests, and nothing else does. The mark of another port of
//     the same host is refused too, as anything may listen there.
//   - A page whose host name is made to resolve to 127.0.0.1 is of the same
//     origin, but has to give that name as Host.
func refuse(r *http.Request) error {
	forbidden := func(status int, msg string) error {
		return &httpError{status, &sandbox.Error{Code: sandbox.CodeInvalid, Message: msg}}
	}
	if !trustedHost(r.Host) {
		return forbidden(http.StatusMisdirectedRequest, "the Host header must be an address or localhost")
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return forbidden(http.StatusForbidden, "cross-origin requests are refused")
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host && origin != "https://"+r.Host {
		return forbidden(http.StatusForbidden, "cross-origin requests are refused")
	}
	return nil
}

// trustedHost reports whether a Host header cannot be that of somebody's DNS
// record. HTTP/1.0 clients send none.
func trustedHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(host)
	return err == nil || host == "" || strings.EqualFold(host, "localhost")
}

// noRoute answers what the mux has no handler for, in JSON and with the mux's
// own status: 404, or 405 with the methods that there are.
func (a *api) noRoute(w http.ResponseWriter, r *http.Request) {
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
