package provision

import (
	"context"
	"sync"
	"time"
)

// Foreground counts what clients wait for, so that work which nobody waits for
// can stand back: the host's CPUs are no faster for being wanted twice. Its
// methods may be called by any number of goroutines.
type Foreground struct {
	// cpus is how much the host does at a time.
	cpus int

	mu   sync.Mutex
	busy int
	// quiet is closed when there is a CPU to spare; nil while nobody asks.
	quiet chan struct{}
}

// NewForeground returns a count for a host of that many CPUs.
func NewForeground(cpus int) *Foreground { return &Foreground{cpus: cpus} }

// Enter counts one more request in.
func (f *Foreground) Enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy++
}

// Leave counts it out again.
func (f *Foreground) Leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy--
	if f.quiet != nil && f.busy < f.cpus {
		close(f.quiet)
		f.quiet = nil
	}
}

// StandBack returns when there are fewer requests than CPUs, or when patience or
// ctx is over: a program may run for hours without needing a CPU.
func (f *Foreground) StandBack(ctx context.Context, patience time.Duration) {
	f.mu.Lock()
	if f.busy < f.cpus {
		f.mu.Unlock()
		return
	}
	if f.quiet == nil {
		f.quiet = make(chan struct{})
	}
	quiet := f.quiet
	f.mu.Unlock()
	over := time.NewTimer(patience)
	defer over.Stop()
	select {
	case <-quiet:
	case <-over.C:
	case <-ctx.Done():
	}
}
