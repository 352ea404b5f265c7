package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// dial connects to an address inside the VM and passes bytes both ways until
// both sides have ended or one has broken.
func dial(ctx context.Context, stream net.Conn, w *agentv1.FrameWriter, req *agentv1.Dial) error {
	network := req.GetNetwork()
	if network != "tcp" && network != "unix" {
		return fmt.Errorf("dial: unknown network %q", network)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, req.GetAddress())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := w.WriteMessage(agentv1.FrameDone, &agentv1.Done{}); err != nil {
		return err
	}
	host := agentv1.NewDataConn(stream)
	var directions sync.WaitGroup
	directions.Go(func() { pass(host, conn) })
	directions.Go(func() { pass(conn, host) })
	directions.Wait()
	return nil
}

// pass copies src to dst and its end with it. When either breaks, both are
// closed, which ends the other direction too.
func pass(dst, src net.Conn) {
	_, err := io.Copy(struct{ io.Writer }{dst}, struct{ io.Reader }{src})
	if err == nil {
		err = dst.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		_ = dst.Close()
		_ = src.Close()
	}
}
