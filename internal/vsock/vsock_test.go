package vsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen is a Firecracker that hands its first connection to serve.
func listen(t *testing.T, serve func(net.Conn)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "v")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		serve(conn)
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return path
}

// connect connects to path and on to port 1024.
func connect(ctx context.Context, t *testing.T, path string) (net.Conn, error) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return Connect(ctx, conn, 1024)
}

func TestConnect(t *testing.T) {
	path := listen(t, func(c net.Conn) {
		// As Firecracker does: one read has to bring the whole line.
		buf := make([]byte, 64)
		n, _ := c.Read(buf)
		if string(buf[:n]) == "CONNECT 1024\n" {
			// The guest's first bytes arrive with the answer.
			_, _ = io.WriteString(c, "OK 1073741824\nhello")
		}
	})
	conn, err := connect(t.Context(), t, path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, error %v; want the guest's bytes whole", got, err)
	}
}

func TestConnectRefused(t *testing.T) {
	path := listen(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 64)) })
	if _, err := connect(t.Context(), t, path); !errors.Is(err, ErrRefused) {
		t.Errorf("error is %v, want ErrRefused", err)
	}
}

func TestConnectSilent(t *testing.T) {
	path := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := connect(ctx, t, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want the deadline", err)
	}
}

func FuzzHandshake(f *testing.F) {
	for _, s := range []string{"OK 1\n", "OK 1\nrest", "OK 4294967295\n", "OK \n", "OK 1", "NO 1\n", strings.Repeat("O", 99), ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		r := bytes.NewReader(answer)
		err := handshake(struct {
			io.Reader
			io.Writer
		}{r, io.Discard}, 1024)
		taken := answer[:len(answer)-r.Len()]
		if len(taken) > maxReply {
			t.Fatalf("took %d bytes", len(taken))
		}
		if err != nil {
			return
		}
		if !bytes.HasPrefix(taken, []byte("OK ")) || bytes.IndexByte(taken, '\n') != len(taken)-1 {
			t.Fatalf("accepted %q of %q", taken, answer)
		}
	})
}
