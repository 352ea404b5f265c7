package egress

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

const (
	// maxHead bounds the head of a request, and maxResponseHead that of a response.
	maxHead         = 64 << 10
	maxResponseHead = 256 << 10
	// webIdle is how long a connection may wait for its next request.
	webIdle = 5 * time.Minute
)

// web relays connections to port 80 request by request, since each can name
// another host. What goes out is written anew from what was understood, so nobody
// behind it reads more requests, or other hosts, than were checked.
type web struct {
	relayed *relay
	ctx     context.Context
	conns   chan *webConn
	server  *http.Server
	proxy   *httputil.ReverseProxy
}

// webConn is a guest's connection to port 80. All but done belongs to the
// goroutine of the server that serves it.
type webConn struct {
	*guestConn
	flow      *flow
	transport *http.Transport
	// handled: what is written answers a request that was understood. unread:
	// something came of which no request could be made.
	handled, unread, hijacked bool
	done                      chan struct{} // closed when nobody serves it any more
}

// Write notes when the server answers by itself, which it does to what it does
// not understand.
func (c *webConn) Write(b []byte) (int, error) {
	if !c.handled {
		c.unread = true
	}
	return c.guestConn.Write(b)
}

type webKey struct{}

func newWeb(ctx context.Context, r *relay) *web {
	w := &web{relayed: r, ctx: ctx, conns: make(chan *webConn)}
	// What these would log is up to the guest.
	silent := slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	w.proxy = &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     w,
		FlushInterval: -1,
		ErrorLog:      silent,
		ErrorHandler: func(_ http.ResponseWriter, req *http.Request, _ error) {
			// As if there were nothing in between: the connection breaks.
			reset(connOf(req).Conn)
			panic(http.ErrAbortHandler)
		},
	}
	w.server = &http.Server{
		Handler: w, ErrorLog: silent,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            r.firstBytes, IdleTimeout: webIdle,
		// The server reads as much more.
		MaxHeaderBytes: maxHead - 4096,
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext:    func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, webKey{}, c) },
		ConnState:      func(c net.Conn, state http.ConnState) { w.state(c.(*webConn), state) },
	}
	return w
}

func connOf(req *http.Request) *webConn { return req.Context().Value(webKey{}).(*webConn) }

// Accept, Close and Addr make a listener of the connections that are to be served.
func (w *web) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close does nothing: the listener ends with its context.
func (w *web) Close() error { return nil }

// Addr is asked for by nobody.
func (w *web) Addr() net.Addr { return &net.TCPAddr{} }

// serveHTTP serves connections to port 80 until the relay ends.
func (r *relay) serveHTTP() { _ = r.web.server.Serve(r.web) }

func (w *web) close() { _ = w.server.Close() }

// relay serves a connection until it ends.
func (w *web) relay(f *flow, g *guestConn) {
	c := &webConn{guestConn: g, flow: f, done: make(chan struct{})}
	var http1 http.Protocols
	http1.SetHTTP1(true)
	c.transport = &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return w.connect(f) //nolint:contextcheck // the connection outlives the request
		},
		DisableCompression:     true,
		Protocols:              &http1,
		MaxConnsPerHost:        1,
		MaxResponseHeaderBytes: maxResponseHead,
		ReadBufferSize:         chunk, WriteBufferSize: chunk,
	}
	select {
	case w.conns <- c:
		<-c.done
	case <-f.ctx.Done():
	}
	c.transport.CloseIdleConnections()
}

// connect connects to where a guest's connection goes.
func (w *web) connect(f *flow) (net.Conn, error) {
	conn, err := w.relayed.connect(f, "tcp")
	if err != nil {
		return nil, err
	}
	return &webUp{conn, context.AfterFunc(f.ctx, func() { reset(conn) })}, nil
}

// webUp is a connection that may end before its flow, which has many.
type webUp struct {
	net.Conn
	stop func() bool
}

func (c *webUp) Close() error {
	c.stop()
	return c.Conn.Close()
}

// state notes what becomes of a connection.
func (w *web) state(c *webConn, state http.ConnState) {
	switch state {
	case http.StateActive:
		c.unread = true
	case http.StateIdle:
		c.handled = false
	case http.StateHijacked:
		c.hijacked = true
	case http.StateClosed:
		if c.unread && c.flow.ctx.Err() == nil {
			w.relayed.deny(c.flow, "", sandbox.DeniedUnnamed)
		}
		close(c.done)
	}
}

// ServeHTTP relays one request.
func (w *web) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	c := connOf(req)
	c.handled, c.unread = true, false
	defer func() {
		if c.hijacked {
			close(c.done)
		}
	}()
	if why := w.refusal(c.flow, req); why != "" {
		h := rw.Header()
		h.Set("Connection", "close")
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		rw.WriteHeader(http.StatusForbidden)
		_, _ = fmt.Fprintf(rw, "refused by the egress policy of this sandbox: %s\n", why) //nolint:gosec // plain text, to the guest who sent what it quotes
		return
	}
	if !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
		// A server is free not to take up an offer.
		req.Header.Del("Upgrade")
	}
	// What the other side does not say is not made up.
	rw.Header()["Content-Type"] = nil
	rw.Header()["Date"] = nil
	w.proxy.ServeHTTP(rw, req)
}

// refusal denies a request and says why, or returns "".
func (w *web) refusal(f *flow, req *http.Request) string {
	switch {
	case req.ProtoMajor != 1:
		w.relayed.deny(f, "", sandbox.DeniedUnnamed)
		return "only HTTP/1 can be checked at port 80"
	case req.Method == http.MethodConnect:
		w.relayed.deny(f, "", sandbox.DeniedUnnamed)
		return "CONNECT hides where the connection goes"
	case req.URL.Scheme != "" && req.URL.Scheme != "http":
		w.relayed.deny(f, req.Host, sandbox.DeniedName)
		return "only http is relayed at port 80"
	}
	host := req.Host
	if name, port, err := net.SplitHostPort(host); err == nil {
		if host = name; port != "80" {
			w.relayed.deny(f, req.Host, sandbox.DeniedName)
			return "the connection is to port 80, and the request is not"
		}
	}
	return w.relayed.admitName(f, strings.TrimSuffix(host, "."))
}

// RoundTrip sends a request on the connection that belongs to the guest's.
func (w *web) RoundTrip(req *http.Request) (*http.Response, error) {
	return connOf(req).transport.RoundTrip(req)
}

// rewrite makes a request for the other side of what the guest sent: the same, to
// the address that the guest connected to.
func rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme, p.Out.URL.Host, p.Out.URL.User = "http", connOf(p.In).flow.to.String(), nil
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.Host = p.In.Host
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := p.In.Header[name]; ok {
			p.Out.Header[name] = values
		}
	}
}
