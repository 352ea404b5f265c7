package egress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
)

// maxHello bounds a ClientHello with the records around it.
const maxHello = 64 << 10

// extensionECH is the extension by which a ClientHello hides another one, with
// another name (RFC 9849).
const extensionECH = 0xfe0d

// hello is what is looked at of a ClientHello.
type hello struct {
	name      string // "" if it has none
	encrypted bool   // it may hide another name
}

// errRead stops a handshake once the ClientHello is there.
var errRead = errors.New("the ClientHello is read")

// readHello reads a ClientHello in as many records and segments as it comes in.
// It returns all bytes that it took from r, whether it finds one or not. What
// takes the message apart is crypto/tls, which refuses what others read in two
// ways: an extension that comes twice, two names, a name with a dot at its end.
func readHello(r io.Reader) (h hello, raw []byte, err error) {
	c := &helloConn{r: r}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			h = hello{name: info.ServerName, encrypted: slices.Contains(info.Extensions, extensionECH)}
			return nil, errRead
		},
	}
	err = tls.Server(c, config).Handshake()
	if errors.Is(err, errRead) {
		err = nil
	}
	return h, c.raw.Bytes(), err
}

// helloConn lets crypto/tls read and keeps what it reads; what it writes, which
// are alerts, goes nowhere.
type helloConn struct {
	net.Conn // nil: the other methods are not for a handshake without deadline

	r   io.Reader
	raw bytes.Buffer
}

func (c *helloConn) Read(b []byte) (int, error) {
	left := maxHello - c.raw.Len()
	if left <= 0 {
		return 0, errors.New("the ClientHello is longer than 64 KiB")
	}
	n, err := c.r.Read(b[:min(len(b), left)])
	c.raw.Write(b[:n])
	return n, err
}

func (*helloConn) Write(b []byte) (int, error) { return len(b), nil }
func (*helloConn) Close() error                { return nil }

// alertUnrecognizedName is a fatal TLS alert, in a record of its own: programs say
// that rather than that the network is broken.
var alertUnrecognizedName = []byte{21, 3, 3, 0, 2, 2, 112}
