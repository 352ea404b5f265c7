package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/emberd/emberd/internal/sandbox"
)

// serveTCP takes in connections until the listener is closed.
func (r *relay) serveTCP(ctx context.Context, l net.Listener) {
	for r.accepts.Wait(ctx) == nil {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || err != nil && !pause(ctx):
			return
		case err != nil:
			continue
		}
		f, ok := r.begin(ctx, sandbox.TCP, addrPort(conn.LocalAddr()), maxTCP)
		if !ok {
			reset(conn)
			continue
		}
		r.running.Go(func() { //nolint:contextcheck // the flow's context is made of this one
			defer r.end(f)
			r.relayTCP(f, conn)
		})
	}
}

// relayTCP decides a connection and, if it may, connects it.
func (r *relay) relayTCP(f *flow, conn net.Conn) {
	defer context.AfterFunc(f.ctx, func() { reset(conn) })()
	g := &guestConn{Conn: conn, ctx: f.ctx, up: r.up, down: r.down}
	switch {
	case r.forbids(f):
	case r.admit(f, ""):
		r.join(f, g, nil)
		return
	case f.to.Port() == 443:
		r.relayTLS(f, g)
		return
	case f.to.Port() == 80:
		r.web.relay(f, g)
		return
	case r.admitAddr(f):
		r.join(f, g, nil)
		return
	}
	reset(conn)
}

// relayTLS lets a connection pass whose ClientHello names a host that is allowed
// where the connection goes.
func (r *relay) relayTLS(f *flow, g *guestConn) {
	_ = g.SetReadDeadline(time.Now().Add(r.firstBytes))
	h, raw, err := readHello(g)
	_ = g.SetReadDeadline(time.Time{})
	switch {
	case err != nil && len(raw) == 0 && errors.Is(err, io.EOF):
		// Nothing was asked for, so nothing is refused.
		_ = g.Close()
		return
	case f.ctx.Err() != nil:
		return
	case err != nil || h.encrypted:
		r.deny(f, "", sandbox.DeniedUnnamed)
	case r.admitName(f, h.name) == "":
		r.join(f, g, raw)
		return
	}
	_ = g.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = g.Write(alertUnrecognizedName)
	// What is closed with bytes unread is reset, and an alert with it.
	_ = g.CloseWrite()
	_ = g.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, g.Conn, maxHello)
	_ = g.Close()
}

// join connects the guest to where it wants to go, beginning with what was read of
// it already, until both are through or one breaks off.
func (r *relay) join(f *flow, g *guestConn, read []byte) {
	up, err := r.connect(f, "tcp")
	if err != nil {
		reset(g.Conn)
		return
	}
	defer context.AfterFunc(f.ctx, func() { reset(up) })()
	var both sync.WaitGroup
	both.Go(func() {
		_, err := up.Write(read)
		if err == nil {
			err = transfer(up, g)
		}
		if err != nil {
			f.cut()
		}
	})
	both.Go(func() {
		if transfer(g, up) != nil {
			f.cut()
		}
	})
	both.Wait()
	if f.ctx.Err() == nil {
		_ = g.Close()
		_ = up.Close()
	}
}

// transfer copies until from ends, and says so to to.
func transfer(to io.Writer, from io.Reader) error {
	// The types hide what would copy past the limiters.
	if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, chunk)); err != nil {
		return err
	}
	if c, ok := to.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// guestConn is a connection of the guest, at the rate that it may have.
type guestConn struct {
	net.Conn

	ctx      context.Context
	up, down *rate.Limiter
}

func (c *guestConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b[:min(len(b), chunk)])
	if n > 0 && c.up.WaitN(c.ctx, n) != nil {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *guestConn) Write(b []byte) (written int, err error) {
	for err == nil && written < len(b) {
		part := b[written:min(len(b), written+chunk)]
		if c.down.WaitN(c.ctx, len(part)) != nil {
			return written, net.ErrClosed
		}
		var n int
		n, err = c.Conn.Write(part)
		written += n
	}
	return written, err
}

// Close resets the connection if its flow was cut.
func (c *guestConn) Close() error {
	if c.ctx.Err() != nil {
		reset(c.Conn)
		return nil
	}
	return c.Conn.Close()
}

// CloseWrite says to the guest that nothing comes any more.
func (c *guestConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
