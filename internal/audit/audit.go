// Package audit keeps a file of what has to be known afterwards: what sandboxes
// were allowed to reach, and what they were refused.
//
// The one idea: a line for each thing, which is one JSON object and is only ever
// appended. A file that has grown to its limit becomes the older one and another
// is begun, so there are two of them at most.
//
// The invariant: each line is whole and holds no character that controls anything,
// whatever a guest made the daemon write, and whenever it was killed.
//
// The package does not decide what is worth a line, and nobody reads it here.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// MaxBytes is how large a file grows. The longest line, a policy, fits in it many
// times.
const MaxBytes = 8 << 20

// olderSuffix ends the name of the older file.
const olderSuffix = ".1"

// Entry is one line.
type Entry struct {
	Time    time.Time  `json:"time"`
	Event   Event      `json:"event"`
	Sandbox sandbox.ID `json:"sandbox_id"`
	Pack    string     `json:"language_pack"`
	// Egress is the policy that is in force from then on.
	Egress *sandbox.Egress `json:"egress,omitempty"`
	// Denied is what was refused, and how often since the line before it about the
	// same.
	Denied *sandbox.EgressDenial `json:"denied,omitempty"`
	// Others is how often other things were refused that have no line of their own.
	Others int64 `json:"others,omitempty"`
}

// Event is what a line is about.
type Event string

// The events.
const (
	EgressSet    Event = "egress_set"
	EgressDenied Event = "egress_denied"
)

// Log is the file. Its methods may be called by any number of goroutines; each
// writes before it returns.
type Log struct {
	path string
	most int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// Open opens the file at path, or makes it, for its owner alone. The caller closes
// it.
func Open(path string) (*Log, error) {
	l := &Log{path: path, most: MaxBytes}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return l, nil
}

// open opens the file and ends a line that a daemon which was killed had begun.
func (l *Log) open() error {
	file, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", l.path)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.file, l.size = file, info.Size()
	last := make([]byte, 1)
	if _, err := file.ReadAt(last, l.size-1); l.size > 0 && err == nil && last[0] != '\n' {
		return l.cut(l.lastLine())
	}
	return nil
}

// lastLine is where the last line begins, as far as a line can be long.
func (l *Log) lastLine() int64 {
	from := max(0, l.size-l.most/2)
	tail, _ := io.ReadAll(io.NewSectionReader(l.file, from, l.size-from))
	return from + int64(bytes.LastIndexByte(tail, '\n')+1)
}

// cut drops what is behind size.
func (l *Log) cut(size int64) error {
	l.size = size
	return l.file.Truncate(size)
}

// Append writes one line.
func (l *Log) Append(entry Entry) error {
	line, err := json.Marshal(entry) // which escapes what controls anything
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	line = append(escapeDelete(line), '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return fmt.Errorf("audit: %w", os.ErrClosed)
	}
	if l.size > 0 && l.size+int64(len(line)) > l.most {
		if err := l.rotate(); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	n, err := l.file.Write(line)
	if err != nil {
		// Half a line must not become the beginning of the next.
		return fmt.Errorf("audit: %w", errors.Join(err, l.cut(l.size)))
	}
	l.size += int64(n)
	return nil
}

// escapeDelete escapes what encoding/json does not count among the characters that
// control a terminal: DEL, and those of C1.
func escapeDelete(line []byte) []byte {
	if !bytes.ContainsFunc(line, isControl) {
		return line
	}
	var out []byte
	for _, r := range string(line) {
		if isControl(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, string(r)...)
		}
	}
	return out
}

func isControl(r rune) bool { return r >= 0x7f && r <= 0x9f }

// rotate begins another file.
func (l *Log) rotate() error {
	if err := os.Rename(l.path, l.path+olderSuffix); err != nil {
		return err
	}
	old := l.file
	if err := l.open(); err != nil {
		return err
	}
	return old.Close()
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	return file.Close()
}
