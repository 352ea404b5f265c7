package daemon

import (
	"net"
	"net/http"
	"sync"
)

// arrivals knows the connections of a server that an answer is owed to: those
// that have sent a request, and those that may be about to.
//
// A server that is shut down drops a connection which it accepted and has not
// read from yet. Its client has connected and never learns why nobody answers,
// so it is let have its say first.
type arrivals struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
	none chan struct{} // closed when open is empty; nil if nobody waits
}

// watch has srv tell a about its connections, beside whom it tells already. It
// is called before srv serves.
func (a *arrivals) watch(srv *http.Server) {
	told := srv.ConnState
	srv.ConnState = func(conn net.Conn, state http.ConnState) {
		a.track(conn, state)
		if told != nil {
			told(conn, state)
		}
	}
}

func (a *arrivals) track(conn net.Conn, state http.ConnState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch state {
	case http.StateNew, http.StateActive:
		if a.open == nil {
			a.open = make(map[net.Conn]struct{})
		}
		a.open[conn] = struct{}{}
	default:
		delete(a.open, conn)
	}
	if len(a.open) == 0 && a.none != nil {
		close(a.none)
		a.none = nil
	}
}

// gone returns a channel that is closed when nothing is owed to anybody. It is
// called once, after the listeners were closed.
func (a *arrivals) gone() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	none := make(chan struct{})
	if len(a.open) == 0 {
		close(none)
	} else {
		a.none = none
	}
	return none
}
