// Package vsock connects the host to a port inside a microVM.
//
// Firecracker gives the host no AF_VSOCK: it listens on a Unix socket and, told
// "CONNECT port", passes bytes on to whoever listens on that port in the guest.
// [Connect] is the host's end of this, [Listen] the guest's. Neither knows what
// the bytes mean, and neither retries.
package vsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// ErrRefused says that Firecracker closed the connection instead of passing it
// on: nobody listens on the port, perhaps not yet.
var ErrRefused = errors.New("nobody listens on the guest's port")

// maxReply is the longest line Firecracker answers: "OK ", a port number of 32
// bits and the newline.
const maxReply = len("OK 4294967295\n")

// Connect has conn, a connection to the Unix socket of a Firecracker, passed on
// to port in its guest. The connection it returns is conn; on error that is
// closed. ctx bounds the connecting only. The error matches [ErrRefused] when
// the guest does not listen.
func Connect(ctx context.Context, conn net.Conn, port uint32) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := handshake(conn, port)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to guest port %d: %w", port, err), conn.Close())
	}
	return conn, nil
}

// handshake asks for port. The line goes out in one write: Firecracker drops a
// connection whose first read does not hold all of it.
func handshake(conn io.ReadWriter, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return refused(err)
	}
	line, err := readLine(conn)
	if err != nil {
		return refused(err)
	}
	assigned, ok := strings.CutPrefix(line, "OK ")
	if _, err := strconv.ParseUint(assigned, 10, 32); !ok || err != nil {
		return fmt.Errorf("unexpected answer %q", line)
	}
	return nil
}

// readLine reads up to a newline and not a byte more: what follows belongs to
// the guest.
func readLine(r io.Reader) (string, error) {
	var line [maxReply]byte
	for n := range line {
		if _, err := io.ReadFull(r, line[n:n+1]); err != nil {
			return "", err
		}
		if line[n] == '\n' {
			return string(line[:n]), nil
		}
	}
	return "", fmt.Errorf("answer %q is too long", line[:])
}

// refused turns the ways in which a connection is dropped into [ErrRefused].
func refused(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return ErrRefused
	}
	return err
}

// Listen listens on port of the guest this process runs in.
func Listen(port uint32) (net.Listener, error) {
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return l, nil
}
