package provision

import (
	"context"
	"sync"
	"time"
)

// What is made ahead begins in a lull of this length between requests, or when
// patience is over.
const (
	Lull     = 50 * time.Millisecond
	Patience = time.Second
)

// Foreground counts what clients wait for, so that work which nobody waits for
// can stand back: a CPU is no faster for being wanted twice. Its methods may be
// called by any number of goroutines.
type Foreground struct {
	// cpus is how much the host does at a time.
	cpus int

	mu   sync.Mutex
	busy int
	// since is when there was last none to spare.
	since time.Time
	// spare is closed when there is one again, and quiet when nothing is waited
	// for any more; nil while nobody asks.
	spare, quiet chan struct{}
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
	if f.busy == f.cpus {
		f.since = time.Now()
		if f.spare != nil {
			close(f.spare)
			f.spare = nil
		}
	}
	f.busy--
	if f.busy == 0 && f.quiet != nil {
		close(f.quiet)
		f.quiet = nil
	}
}

// Quiet returns when clients wait for nothing, or ctx ends.
func (f *Foreground) Quiet(ctx context.Context) {
	f.mu.Lock()
	if f.busy == 0 {
		f.mu.Unlock()
		return
	}
	if f.quiet == nil {
		f.quiet = make(chan struct{})
	}
	quiet := f.quiet
	f.mu.Unlock()
	select {
	case <-quiet:
	case <-ctx.Done():
	}
}

// StandBack returns when there was a CPU to spare for the time of lull. The
// answer to a request is still on its way when the request is counted out, and
// the next one may follow it at once. StandBack waits no longer than patience,
// as a program may run for hours without needing a CPU, and no longer than until
// stop is closed.
func (f *Foreground) StandBack(stop <-chan struct{}, lull, patience time.Duration) {
	over := time.NewTimer(patience)
	defer over.Stop()
	for {
		spare, left := f.look(lull)
		if spare == nil && left <= 0 {
			return
		}
		quiet := time.NewTimer(left)
		if spare != nil {
			quiet.Stop()
		}
		select {
		case <-spare:
		case <-quiet.C:
		case <-over.C:
			quiet.Stop()
			return
		case <-stop:
			quiet.Stop()
			return
		}
	}
}

// look returns what is closed when there is a CPU to spare, or if there is one,
// how much of the lull is left.
func (f *Foreground) look(lull time.Duration) (spare <-chan struct{}, left time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy < f.cpus {
		return nil, lull - time.Since(f.since)
	}
	if f.spare == nil {
		f.spare = make(chan struct{})
	}
	return f.spare, 0
}
