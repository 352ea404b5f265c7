// Package execs keeps what there is to know of programs that have an id: that
// they run, how they ended, and the last of what they wrote.
//
// The one idea is that output has positions. Each stream counts the bytes that
// were ever written to it and keeps the youngest of them, so whoever reads names
// the position to read from, and is told when what was there is gone. A reader
// that comes back goes on where it was; nothing is missing or there twice
// without its knowledge.
//
// The invariant is that memory is bounded: each stream has a largest size, all of
// them together have one, and so have the number of programs that ended and the
// time for which they are remembered. No writer ever waits for room or for a
// reader. Of a program that is to be started once, the id and what was asked for
// are remembered for good, and how many of them there may be is bounded, too. The
// package runs nothing, and knows no frames or streams of the
// protocol.
package execs

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

const (
	// MaxStream is how much of one stream is kept, in bytes.
	MaxStream = 1 << 20
	// maxEnded is how many programs that ended are remembered, and maxAge for
	// how long.
	maxEnded = 64
	maxAge   = time.Hour
	// maxOnce is how many programs may be started once. Each takes some 100 bytes.
	maxOnce = 16 << 10
)

// What cannot be had.
var (
	ErrNotFound = errors.New("no program has that id")
	ErrExists   = errors.New("a program has that id already")
	ErrDiffers  = errors.New("a program has that id that was asked for otherwise")
	ErrMany     = errors.New("too many programs were started that can be asked for again")
	ErrBeyond   = errors.New("the output is not that long")
)

// GoneError says that bytes which were asked for are no longer kept.
type GoneError struct {
	// First is the position from which on there are some.
	First uint64
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("output before byte %d is gone", e.First)
}

// Registry is what is known. Any number of goroutines may use it.
type Registry struct {
	budget int // for the output of all programs, in bytes
	now    func() time.Time

	// mu guards everything below, and in the programs and streams too: what one
	// program writes can cost another its oldest output.
	mu    sync.Mutex
	execs []*Exec // in the order of their starts
	// once has the digest of each program that is to be started once, by id.
	once  map[string]string
	used  int
	spare []byte // a block that was dropped and can be used again
}

// New returns a registry whose programs' output takes no more than budget bytes.
func New(budget int) *Registry {
	return &Registry{budget: budget, now: time.Now, once: make(map[string]string)}
}

// Exec is one program.
type Exec struct {
	ID      string
	Timeout time.Duration // zero is none
	Stdout  *Stream
	Stderr  *Stream

	reg   *Registry
	began time.Time
	done  chan struct{}

	// Guarded by reg.mu.
	ended time.Time
	exit  *agentv1.Exit // set before done is closed; nobody changes it
	given uint64
	told  bool
}

// Add registers a program that is about to be started. With a digest of what was
// asked for, it is the only one that is ever registered with that id. The error is
// [ErrExists], [ErrDiffers] or [ErrMany].
func (r *Registry) Add(id, digest string, timeout time.Duration) (*Exec, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch known, is := r.once[id]; {
	case is && known != digest:
		return nil, ErrDiffers
	case is || r.find(id) >= 0:
		return nil, ErrExists
	case digest != "" && len(r.once) >= maxOnce:
		return nil, ErrMany
	case digest != "":
		r.once[id] = digest
	}
	e := &Exec{
		ID: id, Timeout: timeout, Stdout: &Stream{reg: r}, Stderr: &Stream{reg: r},
		reg: r, began: r.now(), done: make(chan struct{}),
	}
	r.execs = append(r.execs, e)
	r.prune()
	return e, nil
}

// Get returns the program called id. The error is [ErrNotFound].
func (r *Registry) Get(id string) (*Exec, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prune()
	if i := r.find(id); i >= 0 {
		return r.execs[i], nil
	}
	return nil, ErrNotFound
}

// GetOnce returns the program called id if it was registered with that digest. The
// error is [ErrNotFound] if none was registered, [ErrDiffers] if it has another
// digest, and [ErrExists] if it is no longer remembered what became of it.
func (r *Registry) GetOnce(id, digest string) (*Exec, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prune()
	i := r.find(id)
	switch known, is := r.once[id]; {
	case !is && i < 0:
		return nil, ErrNotFound
	case known != digest:
		return nil, ErrDiffers
	case i < 0:
		return nil, ErrExists
	}
	return r.execs[i], nil
}

// List returns all programs in the order of their starts.
func (r *Registry) List() []*Exec {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prune()
	return slices.Clone(r.execs)
}

// Forget drops a program of which it will never be known how it ended.
func (r *Registry) Forget(e *Exec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(e)
}

// End notes how the program ended, once all of its output is there, and how many
// bytes of input it was given. It is called once.
func (e *Exec) End(exit *agentv1.Exit, given uint64) {
	e.reg.mu.Lock()
	defer e.reg.mu.Unlock()
	e.exit, e.given, e.ended = exit, given, e.reg.now()
	e.finish()
}

// Told notes that somebody has been sent all of the program's output and its
// end. When there are too many, such a program is forgotten before others.
func (e *Exec) Told() {
	e.reg.mu.Lock()
	defer e.reg.mu.Unlock()
	e.told = true
}

// Done is closed when the program has ended, or was forgotten.
func (e *Exec) Done() <-chan struct{} { return e.done }

// Exit is how the program ended, nil if that is not known, and how many bytes of
// input it was given.
func (e *Exec) Exit() (exit *agentv1.Exit, given uint64) {
	e.reg.mu.Lock()
	defer e.reg.mu.Unlock()
	return e.exit, e.given
}

// finish wakes all who wait for the program. The caller holds mu.
func (e *Exec) finish() {
	e.Stdout.finish()
	e.Stderr.finish()
	select {
	case <-e.done:
	default:
		close(e.done)
	}
}

// Age is how long ago the program was registered.
func (e *Exec) Age() time.Duration { return e.reg.now().Sub(e.began) }

func (r *Registry) find(id string) int {
	return slices.IndexFunc(r.execs, func(e *Exec) bool { return e.ID == id })
}

// prune forgets the programs that ended too long ago, and those that are too
// many. The caller holds mu.
func (r *Registry) prune() {
	now, ended := r.now(), 0
	for _, e := range slices.Clone(r.execs) {
		if e.exit == nil {
			continue
		}
		if now.Sub(e.ended) > maxAge {
			r.remove(e)
			continue
		}
		ended++
	}
	for ; ended > maxEnded; ended-- {
		r.remove(r.expendable(func(*Exec) bool { return true }))
	}
}

// expendable returns the program that ended first among those that suit, or
// rather among those of them whose end somebody was told; nil if none suits. The
// caller holds mu.
func (r *Registry) expendable(suits func(*Exec) bool) *Exec {
	var first *Exec
	for _, e := range r.execs {
		if e.exit == nil || !suits(e) {
			continue
		}
		if first == nil || e.told && !first.told || e.told == first.told && e.ended.Before(first.ended) {
			first = e
		}
	}
	return first
}

// remove drops e and its output. The caller holds mu.
func (r *Registry) remove(e *Exec) {
	e.finish()
	e.Stdout.clear()
	e.Stderr.clear()
	r.execs = slices.DeleteFunc(r.execs, func(other *Exec) bool { return other == e })
}

// makeRoom drops output until what is left is within the budget: that of
// programs that ended first, and then the oldest of whoever has the most. The
// caller holds mu.
func (r *Registry) makeRoom() {
	for r.used > r.budget {
		if e := r.expendable(func(e *Exec) bool { return e.Stdout.size+e.Stderr.size > 0 }); e != nil {
			e.Stdout.clear()
			e.Stderr.clear()
			continue
		}
		var largest *Stream
		for _, e := range r.execs {
			for _, s := range []*Stream{e.Stdout, e.Stderr} {
				if largest == nil || s.size > largest.size {
					largest = s
				}
			}
		}
		if largest == nil || largest.size == 0 {
			return
		}
		largest.dropBlock()
	}
}
