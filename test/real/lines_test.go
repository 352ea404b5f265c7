package real

import (
	"bufio"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// lines are what a program writes, while it does.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func newLines(r io.Reader) *lines {
	l := &lines{more: make(chan struct{}, 1)}
	go func() { // to the end of r
		for s := bufio.NewScanner(r); s.Scan(); {
			l.mu.Lock()
			l.text.WriteString(s.Text() + "\n")
			l.mu.Unlock()
			select {
			case l.more <- struct{}{}:
			default:
			}
		}
	}()
	return l
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until a line begins with prefix.
func (l *lines) await(t *testing.T, prefix string, patience time.Duration) bool {
	t.Helper()
	late := time.After(patience)
	for {
		if strings.Contains("\n"+l.all(), "\n"+prefix) {
			return true
		}
		select {
		case <-l.more:
		case <-late:
			return false
		}
	}
}
