package machine

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
)

// forward passes each connection that ln accepts on to one that dial makes,
// until ctx ends; then it closes ln and every connection and returns.
func forward(ctx context.Context, ln net.Listener, dial func(context.Context) (net.Conn, error), log *slog.Logger) {
	var open sync.WaitGroup
	defer open.Wait()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				log.Error("no longer accepting connections", "address", ln.Addr().String(), "err", err)
			}
			_ = ln.Close()
			return
		}
		open.Go(func() {
			defer func() { _ = conn.Close() }()
			upstream, err := dial(ctx)
			if err != nil {
				log.Warn("connection refused", "address", ln.Addr().String(), "err", err)
				return
			}
			join(ctx, conn, upstream)
		})
	}
}

// join copies bytes both ways until either side ends, or ctx does, and closes
// both: neither kind of stream in the machine has a half-close.
func join(ctx context.Context, a, b net.Conn) {
	closeBoth := func() { _, _ = a.Close(), b.Close() }
	defer closeBoth()
	defer context.AfterFunc(ctx, closeBoth)()
	var copies sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		copies.Go(func() {
			defer closeBoth()
			// An error is the end of the connection, whoever caused it.
			_, _ = io.Copy(way[0], way[1])
		})
	}
	copies.Wait()
}
