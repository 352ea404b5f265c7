// Package cleanup undoes a half-made thing. Each step of making it adds its own
// undo to a [Stack]; success releases the stack, failure unwinds it in reverse.
//
// Undoing runs on a context of its own ([Context]), which the caller's
// cancellation cannot reach and which cannot hang for ever: a create that was
// interrupted must still be able to clear up after itself.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Timeout bounds one teardown.
const Timeout = 15 * time.Second

// Context returns a context for a teardown: it carries ctx's values, ignores
// its cancellation and ends after [Timeout].
func Context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), Timeout)
}

// The pauses of [Persist].
const (
	firstPause = 250 * time.Millisecond
	longPause  = 30 * time.Second
)

// Persist runs a teardown for which nobody waits, once and then again after
// pauses that grow, until it succeeds or stop is closed. It tells each error,
// and returns the last, nil if the teardown succeeded.
func Persist(ctx context.Context, stop <-chan struct{}, run func(context.Context) error, tell func(error)) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := bounded(ctx, run)
		if err == nil {
			return nil
		}
		tell(err)
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-stop:
			again.Stop()
			return err
		}
	}
}

func bounded(ctx context.Context, run func(context.Context) error) error {
	ctx, cancel := Context(ctx)
	defer cancel()
	return run(ctx)
}

// Stack holds the undo of each step done so far. The zero value is ready. It is
// used by one goroutine at a time.
type Stack struct {
	undos []undo
}

type undo struct {
	name string
	run  func(context.Context) error
}

// Add pushes the undo of the step called name.
func (s *Stack) Add(name string, run func(context.Context) error) {
	s.undos = append(s.undos, undo{name, run})
}

// Release forgets every undo: what was made now belongs to somebody else.
func (s *Stack) Release() { s.undos = nil }

// Unwind runs every undo, last first. One that fails does not stop the others;
// their errors are joined. Only what failed stays in the stack, for another
// Unwind to try again.
func (s *Stack) Unwind(ctx context.Context) error {
	ctx, cancel := Context(ctx)
	defer cancel()
	var (
		failed []undo
		errs   []error
	)
	for _, u := range slices.Backward(s.undos) {
		if err := u.run(ctx); err != nil {
			failed = append(failed, u)
			errs = append(errs, fmt.Errorf("undo %s: %w", u.name, err))
		}
	}
	slices.Reverse(failed)
	s.undos = failed
	return errors.Join(errs...)
}
