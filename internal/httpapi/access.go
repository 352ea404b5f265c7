package httpapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// Access says what is asked of those who come in through one listener.
type Access struct {
	// Hosts are the Host headers that requests may carry, in lower case and
	// with the port as clients write it. Nil is any, which is for listeners
	// that no browser reaches.
	Hosts []string
	// Keys tells who has a key; nil asks for none.
	Keys Keys
	// KeysAlways asks for a key even when Keys does not.
	KeysAlways bool
	// Peer returns an error for a connection whose other end may not come in;
	// nil lets everybody.
	Peer func(net.Conn) error
	// MaxConns bounds the connections of the listener.
	MaxConns int
}

// Keys knows the API keys.
type Keys interface {
	// Asked reports whether clients are asked for a key.
	Asked() bool
	// Admit reports whether key is good, and its id. The context ends when it no
	// longer is.
	Admit(key string) (id string, good context.Context, ok bool)
}

// maxQuery bounds what may follow the path of a URL, in bytes.
const maxQuery = 4 << 10

// Why requests are refused before anybody looks at what they ask for.
var (
	errNoKey   = &sandbox.Error{Code: sandbox.CodeUnauthorized, Message: "an API key is needed, as Authorization: Bearer KEY"}
	errBadKey  = &sandbox.Error{Code: sandbox.CodeUnauthorized, Message: "the API key is not valid"}
	errRevoked = &sandbox.Error{Code: sandbox.CodeUnauthorized, Message: "the API key was revoked"}
	errPeer    = &sandbox.Error{Code: sandbox.CodeForbidden, Message: "this user may not use emberd's socket"}
	errOrigin  = &sandbox.Error{Code: sandbox.CodeForbidden, Message: "cross-origin requests are refused"}
	errHost    = &httpError{http.StatusMisdirectedRequest, sandbox.Invalid("emberd does not answer to this Host header; --allow-host names others")}
	errQuery   = &httpError{http.StatusRequestURITooLong, sandbox.Invalid("the query is too long")}
)

// peerKey is where a connection's context keeps what [Access.Peer] said of it.
type peerKey struct{}

// tenantKey is where a request's context keeps the id of the API key that it came
// in with.
type tenantKey struct{}

// tenant returns it, and "" if none was asked for.
func tenant(r *http.Request) string {
	id, _ := r.Context().Value(tenantKey{}).(string)
	return id
}

// check returns an error for a request that may not come in, whoever sends it.
func (acc Access) check(r *http.Request) error {
	if err, ok := r.Context().Value(peerKey{}).(error); ok {
		return errPeer.Because(err)
	}
	if acc.Hosts != nil && !slices.Contains(acc.Hosts, strings.ToLower(r.Host)) {
		return errHost
	}
	if crossOrigin(r) {
		return errOrigin
	}
	if len(r.URL.RawQuery) > maxQuery {
		return errQuery
	}
	return nil
}

// crossOrigin reports whether a web page may have made a browser send r. Where
// the API asks for no key, any page that the user visits could otherwise run
// code:
//
//   - A page of another origin can send a GET or a POST without asking first.
//     Browsers mark such requests, and nothing else does. The mark of another
//     port of the same host counts too, as anything may listen there.
//   - A page whose host name is made to resolve to 127.0.0.1 is of the same
//     origin, but has to give that name as Host: [Access.Hosts] is for that. So
//     is a request to 0.0.0.0, which browsers do not mark.
func crossOrigin(r *http.Request) bool {
	return slices.ContainsFunc(r.Header.Values("Sec-Fetch-Site"), func(site string) bool {
		return site != "same-origin" && site != "none"
	}) || slices.ContainsFunc(r.Header.Values("Origin"), func(origin string) bool {
		return origin != "http://"+r.Host && origin != "https://"+r.Host
	})
}

// admit returns r for a client that may come in. When its key is revoked, the
// request's context ends, and nobody waits for its program any more; what is still
// to be read or written of it is given up. The caller calls leave when the
// request has been answered.
func (acc Access) admit(w http.ResponseWriter, r *http.Request) (_ *http.Request, leave func(), err error) {
	if acc.Keys == nil || !acc.KeysAlways && !acc.Keys.Asked() {
		return r, func() {}, nil
	}
	key, err := bearer(r)
	if err != nil {
		return r, nil, err
	}
	id, good, ok := acc.Keys.Admit(key)
	if !ok {
		return r, nil, errBadKey
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), tenantKey{}, id))
	stop := context.AfterFunc(good, func() { //nolint:contextcheck // it follows the key's life, not the request's
		// The context goes first: whoever sets a deadline looks at it afterwards.
		cancel(errRevoked)
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now())
		_ = conn.SetWriteDeadline(time.Now().Add(lastWords))
	})
	return r.WithContext(ctx), func() { stop(); cancel(nil) }, nil
}

// bearer returns the key that r carries.
func bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", errNoKey
	}
	scheme, key, _ := strings.Cut(values[0], " ")
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return "", errNoKey
	}
	return strings.TrimSpace(key), nil
}

// revoked reports whether the key that r came in with no longer is one.
func revoked(r *http.Request) bool { return errors.Is(context.Cause(r.Context()), errRevoked) }
