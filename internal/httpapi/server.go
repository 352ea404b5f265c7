package httpapi

import (
	"container/list"
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// How long a client may take. A program may run for any time, so there is no
// limit for a whole request.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 60 * time.Second

	// A body has bodyGrace, and a second more for each bodyRate bytes that came.
	bodyGrace = 10 * time.Second
	bodyRate  = 1 << 10

	// Each writePiece bytes of an answer have to be taken in within writeGrace.
	writeGrace = 10 * time.Second
	writePiece = 64 << 10

	// lastWords is for the answer to a client whose key was revoked.
	lastWords = 500 * time.Millisecond
)

// maxHeader bounds a request's line and headers, in bytes. net/http reads 4 KiB
// more than it is told.
const maxHeader = 16<<10 - 4<<10

// Server returns a server of the API for the listener that acc is about.
func (a *API) Server(acc Access) *http.Server {
	conns := &crowd{max: acc.MaxConns, elements: make(map[net.Conn]*list.Element)}
	var protocols http.Protocols
	// HTTP/2 would let one connection be many clients.
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           &gate{a, acc},
		Protocols:         &protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         conns.track,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if acc.Peer == nil {
				return ctx
			}
			if err := acc.Peer(conn); err != nil {
				return context.WithValue(ctx, peerKey{}, err)
			}
			return ctx
		},
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
}

// crowd bounds a server's connections. When one too many comes, that which has
// waited longest without a request gives way: clients who hold connections and
// ask for nothing cannot keep out those who do.
type crowd struct {
	max int

	mu       sync.Mutex
	open     int
	waiting  list.List                  // of net.Conn, longest first
	elements map[net.Conn]*list.Element // of waiting
}

// track is an [http.Server.ConnState].
func (c *crowd) track(conn net.Conn, state http.ConnState) {
	if loser := c.move(conn, state); loser != nil {
		_ = loser.Close()
	}
}

// move notes conn's new state, and returns the connection to close, if any.
func (c *crowd) move(conn net.Conn, state http.ConnState) (loser net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.elements[conn]; e != nil {
		c.waiting.Remove(e)
		delete(c.elements, conn)
	}
	switch state {
	case http.StateNew:
		c.open++
	case http.StateClosed, http.StateHijacked:
		c.open--
	}
	if state == http.StateNew || state == http.StateIdle {
		c.elements[conn] = c.waiting.PushBack(conn)
	}
	if state != http.StateNew || c.open <= c.max {
		return nil
	}
	oldest := c.waiting.Front()
	loser = c.waiting.Remove(oldest).(net.Conn) //nolint:forcetypeassert // nothing else is put in
	delete(c.elements, loser)
	return loser
}
