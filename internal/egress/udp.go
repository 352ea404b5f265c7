package egress

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/emberd/emberd/internal/sandbox"
)

const (
	// udpIdle is after how long without a datagram a flow is over.
	udpIdle = time.Minute
	// maxDatagram bounds what is relayed; the guest's own packets are smaller.
	maxDatagram = 9000
	// maxWaiting are the datagrams of a flow that is not connected yet.
	maxWaiting = 32
)

// udpFlow is what passes between one socket of the guest and one destination.
type udpFlow struct {
	*flow
	from    netip.AddrPort
	waiting chan []byte
	last    atomic.Int64 // when a datagram passed, in nanoseconds of the epoch
}

// udpFlows are those of one listening socket.
type udpFlows struct {
	mu  sync.Mutex
	all map[[2]netip.AddrPort]*udpFlow
}

// serveUDP relays datagrams until the socket is closed.
func (r *relay) serveUDP(ctx context.Context, c *net.UDPConn) {
	flows := &udpFlows{all: map[[2]netip.AddrPort]*udpFlow{}}
	buf, control := make([]byte, maxDatagram), make([]byte, 256)
	for {
		n, oobn, flags, from, err := c.ReadMsgUDPAddrPort(buf, control)
		switch {
		case errors.Is(err, net.ErrClosed) || err != nil && !pause(ctx):
			return
		case err != nil:
			continue
		}
		to, ok := destination(control[:oobn])
		if !ok || flags&unix.MSG_TRUNC != 0 {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if f := r.udpFlow(ctx, flows, from, to); f != nil {
			select {
			case f.waiting <- bytes.Clone(buf[:n]):
			default: // as on any link that is too slow
			}
		}
	}
}

// udpFlow returns the flow that a datagram belongs to, and begins one if there is
// none; nil if there are too many.
func (r *relay) udpFlow(ctx context.Context, flows *udpFlows, from, to netip.AddrPort) *udpFlow {
	key := [2]netip.AddrPort{from, to}
	flows.mu.Lock()
	defer flows.mu.Unlock()
	if f := flows.all[key]; f != nil {
		return f
	}
	begun, ok := r.begin(ctx, sandbox.UDP, to, maxUDP)
	if !ok {
		return nil
	}
	f := &udpFlow{flow: begun, from: from, waiting: make(chan []byte, maxWaiting)}
	flows.all[key] = f
	r.running.Go(func() { //nolint:contextcheck // the flow's context is made of this one
		defer func() {
			flows.mu.Lock()
			delete(flows.all, key)
			flows.mu.Unlock()
			r.end(begun)
		}()
		r.relayUDP(f)
	})
	return f
}

// relayUDP decides a flow and, if it may, relays it until it is idle.
func (r *relay) relayUDP(f *udpFlow) {
	if r.forbids(f.flow) || !r.admit(f.flow, "") && !r.admitAddr(f.flow) {
		return
	}
	up, err := r.connect(f.flow, "udp")
	if err != nil {
		return
	}
	defer context.AfterFunc(f.ctx, func() { _ = up.Close() })()
	// The kernel gives the guest's next datagrams to the socket that fits best,
	// which from now on is this one.
	back, err := r.sockets.reply(f.to, f.from)
	if err != nil {
		r.log.Warn("a flow of datagrams has no way back", "err", err)
		_ = up.Close()
		return
	}
	defer context.AfterFunc(f.ctx, func() { _ = back.Close() })()
	f.last.Store(time.Now().UnixNano())
	var all sync.WaitGroup
	all.Go(func() { r.pump(f, up, back, r.up) })
	all.Go(func() { r.pump(f, back, up, r.down) })
	r.pumpWaiting(f, up)
	all.Wait()
}

// pump relays datagrams in one direction until the flow ends, and ends it if it
// cannot go on.
func (r *relay) pump(f *udpFlow, to, from net.Conn, limit *rate.Limiter) {
	defer f.cut()
	buf := make([]byte, maxDatagram+1)
	for {
		n, err := from.Read(buf)
		if err != nil || limit.WaitN(f.ctx, n) != nil {
			return
		}
		f.last.Store(time.Now().UnixNano())
		if n > maxDatagram {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// pumpWaiting relays what came while the flow was not connected, and ends it when
// nothing has passed for too long.
func (r *relay) pumpWaiting(f *udpFlow, up net.Conn) {
	defer f.cut()
	left := r.udpIdle
	for {
		select {
		case b := <-f.waiting:
			f.last.Store(time.Now().UnixNano())
			if r.up.WaitN(f.ctx, len(b)) != nil {
				return
			}
			if _, err := up.Write(b); err != nil {
				return
			}
		case <-time.After(left):
			if left = r.udpIdle - time.Since(time.Unix(0, f.last.Load())); left <= 0 {
				return
			}
		case <-f.ctx.Done():
			return
		}
	}
}

// destination returns where a datagram was sent, out of what the kernel says
// about it.
func destination(control []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for i := range messages {
		to, err := unix.ParseOrigDstAddr(&messages[i])
		if err != nil {
			continue
		}
		switch to := to.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port)), true
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(to.Addr), uint16(to.Port)), true
		}
	}
	return netip.AddrPort{}, false
}
