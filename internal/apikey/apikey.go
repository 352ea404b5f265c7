// Package apikey keeps the keys that let clients into the API.
//
// The one idea is that nothing on disk opens anything: a key is shown once, when
// it is made, and the file holds its SHA-256. That is enough, and a slow hash
// would be no better, because a key's secret is 160 random bits and no
// password.
//
// The file is the whole interface between those who make keys and the daemon:
// emberctl replaces it, and a [Ring] reads it again when it changed. Its
// existence alone is what asks clients for a key: revoking the last one lets
// nobody in, rather than everybody. The package knows no HTTP, and has no scopes
// or quotas: a key opens everything.
package apikey

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"strings"
	"time"
)

// Key is what is kept of a key.
type Key struct {
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"` // for people
	Hash      Hash      `json:"sha256"`
	CreatedAt time.Time `json:"created_at"`
}

// Hash is the SHA-256 of a whole key.
type Hash [sha256.Size]byte

// MarshalText returns h in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText sets h from hexadecimal.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return errors.New("not a SHA-256")
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// What a key is made of: emb_ID_SECRET_CHECK, where all three are base32. The
// check lets a key that was cut off or mistyped be told from one that was
// revoked, and scanners find keys in what was published by mistake.
const (
	prefix      = "emb"
	idBytes     = 5
	secretBytes = 20
)

// newKey returns a key and its id.
func newKey() (id, key string) {
	var random [idBytes + secretBytes]byte
	_, _ = rand.Read(random[:]) // it never fails
	id = encode(random[:idBytes])
	key = prefix + "_" + id + "_" + encode(random[idBytes:])
	return id, key + "_" + check(key)
}

// parse returns the id in a key, if it is one by its form.
func parse(key string) (id string, ok bool) {
	cut := strings.LastIndexByte(key, '_')
	if cut < 0 || key[cut+1:] != check(key[:cut]) {
		return "", false
	}
	parts := strings.Split(key[:cut], "_")
	if len(parts) != 3 || parts[0] != prefix {
		return "", false
	}
	return parts[1], true
}

func hashOf(key string) Hash { return sha256.Sum256([]byte(key)) }

func check(s string) string {
	return encode(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(s))))
}

func encode(b []byte) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}
