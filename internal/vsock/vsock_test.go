package vsock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
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

// answered is a connection that takes requests and has the answer ready.
type answered struct {
	asked  bytes.Buffer
	answer io.Reader
}

func (c *answered) Write(p []byte) (int, error) { return c.asked.Write(p) }
func (c *answered) Read(p []byte) (int, error)  { return c.answer.Read(p) }

// okLine is how long the line is at the start of answer if Firecracker could
// have sent it, and zero otherwise.
func okLine(answer []byte) int {
	rest, ok := bytes.CutPrefix(answer, []byte("OK "))
	port, _, whole := bytes.Cut(rest, []byte("\n"))
	if !ok || !whole || len(port) < 1 || len(port) > 10 {
		return 0
	}
	n := uint64(0)
	for _, c := range port {
		if c < '0' || c > '9' {
			return 0
		}
		n = 10*n + uint64(c-'0')
	}
	if n > math.MaxUint32 {
		return 0
	}
	return len("OK ") + len(port) + len("\n")
}

// Whatever is answered, only a line that Firecracker could have sent is taken
// for leave to go on, and nothing of what follows it.
func FuzzHandshake(f *testing.F) {
	for _, s := range []string{
		"OK 1\n", "OK 1\nrest", "OK 4294967295\n", "OK 4294967296\n", "OK \n", "OK +1\n", "OK 1_0\n", "OK 1", "NO 1\n",
		strings.Repeat("O", 99), "",
	} {
		f.Add([]byte(s), uint32(1024))
	}
	f.Fuzz(func(t *testing.T, answer []byte, port uint32) {
		r := bytes.NewReader(answer)
		conn := &answered{answer: r}
		err := handshake(conn, port)
		if want := fmt.Sprintf("CONNECT %d\n", port); conn.asked.String() != want {
			t.Fatalf("asked %q, want %q", conn.asked.String(), want)
		}
		taken, line := len(answer)-r.Len(), okLine(answer)
		switch {
		case (err == nil) != (line > 0):
			t.Fatalf("answer %q: %v", answer, err)
		case line > 0 && taken != line:
			t.Fatalf("%d bytes of %q were taken", taken, answer)
		case taken > maxReply:
			t.Fatalf("%d bytes were taken", taken)
		case err != nil && len(err.Error()) > 100:
			t.Fatalf("an answer of %d bytes makes an error of %d", len(answer), len(err.Error()))
		}
		if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Fatalf("error %q holds what the guest said as it is", err)
		}
	})
}
