package machine

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
)

// maxLog bounds each log of a machine, in bytes.
const maxLog = 1 << 20

// logFile is a log that keeps its last part: when it reaches its limit, the
// older half is dropped. It may be written to by any number of goroutines.
type logFile struct {
	max int

	mu   sync.Mutex
	file *os.File
	size int
}

// openLog begins an empty log that takes at most limit bytes.
func openLog(path string, limit int) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &logFile{max: limit, file: f}, nil
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := p
	if len(rest) > l.max/2 {
		rest = rest[len(rest)-l.max/2:]
	}
	if l.size+len(rest) > l.max {
		if err := l.halve(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(rest)
	l.size += n
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// halve drops the older half. The caller holds mu.
func (l *logFile) halve() error {
	keep := make([]byte, min(l.size, l.max/2))
	if _, err := l.file.ReadAt(keep, int64(l.size-len(keep))); err != nil {
		return fmt.Errorf("shorten log: %w", err)
	}
	if err := l.file.Truncate(0); err != nil {
		return fmt.Errorf("shorten log: %w", err)
	}
	n, err := l.file.Write(keep)
	l.size = n
	return err
}

func (l *logFile) Close() error { return l.file.Close() }

// harmless is in QEMU's warnings about what it does not emulate of the CPU.
const harmless = "TCG doesn't support requested feature"

// logTail returns the last lines of a log, indented, to be shown below an
// error; "" if there are none. What the machine printed is not trusted to be
// harmless on a terminal.
func logTail(path string) string {
	// A kernel's panic message stands above its registers and stack.
	const lines, width = 40, 300
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var kept []string
	for line := range bytes.Lines(data) {
		text := strings.TrimSpace(strings.Map(printable, strings.ToValidUTF8(string(line), "?")))
		if text != "" && !strings.Contains(text, harmless) {
			kept = append(kept, "    "+text[:min(len(text), width)])
		}
	}
	return strings.Join(kept[max(0, len(kept)-lines):], "\n")
}

func printable(r rune) rune {
	if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
		return -1
	}
	return r
}
