package firecracker

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// said is a connection to a VMM that says its piece and then goes.
type said struct{ io.Reader }

func (said) Write(p []byte) (int, error)      { return len(p), nil }
func (said) Close() error                     { return nil }
func (said) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (said) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (said) SetDeadline(time.Time) error      { return nil }
func (said) SetReadDeadline(time.Time) error  { return nil }
func (said) SetWriteDeadline(time.Time) error { return nil }

// Whatever a VMM answers, a step has succeeded only if it says so, and what it
// says instead is fit for a log.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 400 Bad Request\r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}",
		"HTTP/1.1 500 \x1b[2J\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\x1b\x00\xff\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
		"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\n\r\n",
		"\x00\x1b", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		dials := 0
		api := newAPIClient(func(context.Context) (net.Conn, error) {
			if dials++; dials > 2 {
				return nil, net.ErrClosed
			}
			return said{bytes.NewReader(in)}, nil
		})
		defer api.close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := api.call(ctx, http.MethodPut, "/actions", action{Type: "InstanceStart"})
		if ctx.Err() != nil {
			t.Fatal("it hung")
		}
		if err == nil {
			if !bytes.HasPrefix(in, []byte("HTTP/")) || !bytes.Contains(in, []byte(" 204")) {
				t.Fatalf("%q was taken for a success", in)
			}
			return
		}
		text := err.Error()
		if len(text) > 8*maxReplyHeader || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			t.Fatalf("an error of %d bytes: %.200q", len(text), text)
		}
		if dials > 1 && bytes.HasPrefix(in, []byte("HTTP/1.1 3")) {
			t.Fatalf("a redirection was followed: %v", err)
		}
	})
}

// The usual refusal is told as it is, and a long one is cut.
func TestFaultMessage(t *testing.T) {
	for in, want := range map[string]string{
		`{"fault_message":"the disk\nis gone"}`: "the disk\ufffdis gone",
		"no JSON \x1b":                          "no JSON \ufffd",
		`{"fault_message":""}`:                  `{"fault_message":""}`,
		strings.Repeat("a", 2*maxFault):         strings.Repeat("a", maxFault),
	} {
		if got := faultMessage([]byte(in)); got != want {
			t.Errorf("%.50q makes %.50q, want %.50q", in, got, want)
		}
	}
}
