// Package tail keeps the end of an endless stream: the last bytes that a guest
// wrote to its console, however much it writes.
package tail

import "sync"

// Buffer is an [io.Writer] that remembers the last Size bytes written to it and
// never fails. It may be used by any number of goroutines.
type Buffer struct {
	// Size is how many bytes are kept. It is set before the first write.
	Size int

	mu  sync.Mutex
	buf []byte
}

// Write keeps the end of p.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := p[max(0, len(p)-b.Size):]
	if drop := len(b.buf) + len(keep) - b.Size; drop > 0 {
		b.buf = b.buf[:copy(b.buf, b.buf[drop:])]
	}
	b.buf = append(b.buf, keep...)
	return len(p), nil
}

// String returns what is kept.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf)
}
