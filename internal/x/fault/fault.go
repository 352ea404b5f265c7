// Package fault lets a test break one step of an algorithm by its name.
//
// Code calls [Set.Hit] at each step with the step's name; in production the set
// is nil and Hit costs one comparison. A package that has fault points lists
// their names, so that a test can loop over all of them and prove that each
// leaves nothing behind.
package fault

import (
	"fmt"
	"sync"
)

// Set holds the faults that are switched on. A nil *Set never fails. It may be
// used by any number of goroutines.
type Set struct {
	mu     sync.Mutex
	faults map[string]func() error
}

// Error is what a step that was made to fail returns.
type Error struct{ Point string }

func (e *Error) Error() string { return fmt.Sprintf("fault injected at %s", e.Point) }

// Fail makes the step called point fail with an [Error] from now on.
func (s *Set) Fail(point string) {
	s.Do(point, func() error { return &Error{Point: point} })
}

// Do calls f at the step called point from now on and fails the step with its
// error.
func (s *Set) Do(point string, f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults == nil {
		s.faults = make(map[string]func() error)
	}
	s.faults[point] = f
}

// Hit is called by the step called point and returns the error it is to fail
// with, usually nil.
func (s *Set) Hit(point string) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	f := s.faults[point]
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f()
}
