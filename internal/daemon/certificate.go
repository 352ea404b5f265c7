package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is a TLS certificate that is read again when its file changed, as
// it does each time it is renewed. It may be used by any number of goroutines.
type certificate struct {
	files TLSFiles
	log   *slog.Logger

	mu    sync.Mutex
	pair  *tls.Certificate
	since time.Time // when the file was written
}

// loadCertificate returns the certificate in files, or nil when there are none.
func loadCertificate(files TLSFiles, log *slog.Logger) (*certificate, error) {
	if files == (TLSFiles{}) {
		return nil, nil
	}
	if files.Cert == "" || files.Key == "" {
		return nil, errors.New("TLS takes a certificate and its key: --tls-cert and --tls-key")
	}
	c := &certificate{files: files, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// config returns what to serve c with.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current(), nil },
	}
}

// current returns the certificate. One that cannot be read, such as while it is
// being replaced, leaves the one before it in use.
func (c *certificate) current() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if info, err := os.Stat(c.files.Cert); err == nil && !info.ModTime().Equal(c.since) {
		if err := c.load(); err != nil {
			c.log.Error("the new certificate cannot be used; the old one still is", "err", err)
		}
	}
	return c.pair
}

// load reads the files.
func (c *certificate) load() error {
	info, err := os.Stat(c.files.Cert)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", c.files.Cert, err)
	}
	c.pair, c.since = &pair, info.ModTime()
	return nil
}
