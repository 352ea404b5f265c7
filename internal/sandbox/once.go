package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// OnceFor is how long a request that was carried out once is remembered at least.
const OnceFor = 24 * time.Hour

// MaxOnceKey is how long the key of a request may be, in bytes.
const MaxOnceKey = 128

// Once makes a request one that is carried out once: whoever sends it again gets
// the same answer. Its zero value is a request that is carried out whenever it is
// sent.
type Once struct {
	// Tenant is the id of the API key that the request came with, if any: each has
	// keys of its own.
	Tenant string `json:"tenant,omitempty"`
	// Key is the client's name for the request.
	Key string `json:"key"`
	// Request is a digest of what is asked for, in hexadecimal, so that a key that
	// is used for something else is noticed.
	Request string `json:"request"`
}

// NewOnce returns the Once of a request for operation with that body.
func NewOnce(tenant, key, operation string, body []byte) Once {
	return Once{Tenant: tenant, Key: key, Request: digest(operation, string(body))}
}

// IsZero reports whether the request is carried out whenever it is sent.
func (o Once) IsZero() bool { return o == Once{} }

// Name tells o from everything that others call their requests.
func (o Once) Name() string { return digest(o.Tenant, o.Key) }

// ExecID is what the program is called that the request starts in the sandbox id:
// always the same, so that the guest can tell that it knows it.
func (o Once) ExecID(id ID) ExecID {
	return ExecID(execPrefix + digest(string(id), o.Tenant, o.Key)[:idHexLen])
}

// Digest is Request as bytes.
func (o Once) Digest() []byte {
	b, _ := hex.DecodeString(o.Request) // nil of what NewOnce did not make
	return b
}

// digest is a SHA-256 of several texts, in hexadecimal. None of them but the last
// may hold a NUL.
func digest(texts ...string) string {
	h := sha256.New()
	for _, s := range texts {
		_, _ = h.Write([]byte(s))
		_, _ = h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ParseOnceKey accepts what a client may call a request: 1 to [MaxOnceKey] visible
// characters of ASCII.
func ParseOnceKey(s string) (string, error) {
	if len(s) < 1 || len(s) > MaxOnceKey {
		return "", Invalid("the Idempotency-Key has %d characters; it can have 1 to %d", len(s), MaxOnceKey)
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return "", Invalid("the Idempotency-Key has the byte %#x; it can have visible characters of ASCII only", c)
		}
	}
	return s, nil
}
