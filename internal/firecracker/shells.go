package firecracker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
)

// Bounds of the wait before another attempt to launch a shell.
const (
	minBackOff = 100 * time.Millisecond
	maxBackOff = 10 * time.Second
)

// launchTimeout is how long the launch of a shell may take. It is some hundred
// times what one takes.
const launchTimeout = 20 * time.Second

// Shells keeps a few shells ready, so that whoever needs one need not wait for
// its launch. A shell that dies while it waits is replaced.
type Shells struct {
	launcher  Launcher
	n         int
	standBack func(stop <-chan struct{})
	log       *slog.Logger
	faults    *fault.Set
	stop      context.CancelFunc
	wg        sync.WaitGroup
	wake      chan struct{}

	mu    sync.Mutex
	ready []*Shell
	busy  int
}

// NewShells keeps n shells ready until it is closed. Before each launch it calls
// standBack, which returns when nobody needs the CPU more, or stop is closed.
func NewShells(ctx context.Context, l Launcher, n int, standBack func(stop <-chan struct{}), log *slog.Logger, faults *fault.Set) *Shells {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Shells{launcher: l, n: n, standBack: standBack, log: log, faults: faults, stop: stop, wake: make(chan struct{}, 1)}
	if n > 0 {
		s.wg.Go(func() { s.keep(ctx) })
	}
	return s
}

// Use calls f with a shell, one that is ready if there is any and else a new
// one. f makes it a VM or kills it. begin is called first, with the shell's id,
// as long as there is nothing to undo but what Shells itself owns. While f runs
// no shell is launched: what f does is waited for, and a launch is not.
func (s *Shells) Use(ctx context.Context, begin func(sandbox.VMID) error, f func(*Shell) error) error {
	s.mu.Lock()
	s.busy++
	shell := s.pop()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy--
		s.refill()
	}()
	if shell != nil {
		if err := begin(shell.ID()); err != nil {
			return errors.Join(err, shell.Kill(ctx))
		}
		return f(shell)
	}
	id := sandbox.NewVMID()
	if err := begin(id); err != nil {
		return err
	}
	shell, err := Launch(ctx, s.launcher, id, 0, s.faults)
	if err != nil {
		return err
	}
	return f(shell)
}

// pop takes a shell that is ready and alive, nil if there is none. The caller
// holds s.mu. What died is left to [Shells.keep].
func (s *Shells) pop() *Shell {
	for i, shell := range s.ready {
		if !shell.ended() {
			s.ready = slices.Delete(s.ready, i, i+1)
			return shell
		}
	}
	return nil
}

// refill has [Shells.keep] look at what there is.
func (s *Shells) refill() {
	select {
	case s.wake <- struct{}{}:
	default: // it is going to look in any case
	}
}

// keep launches shells until ctx ends, then kills them. After one that could not
// be launched, or has died, the next waits a while.
func (s *Shells) keep(ctx context.Context) {
	backOff := time.Duration(0)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.clear(ctx, func(*Shell) bool { return true })
			return
		case <-s.wake:
			if backOff > 0 {
				continue // the timer is what is waited for
			}
		case <-timer.C:
		}
		failed := s.clear(ctx, (*Shell).ended) > 0
		for !failed && s.wanted() && ctx.Err() == nil {
			if s.standBack(ctx.Done()); !s.wanted() {
				break // who needs one now has it looked at again
			}
			err := s.launch(ctx)
			if failed = err != nil; failed && ctx.Err() == nil {
				s.log.Warn("no VMM could be launched ahead", "err", err)
			}
		}
		if !failed {
			backOff = 0
			continue
		}
		backOff = min(max(minBackOff, 2*backOff), maxBackOff)
		timer.Reset(backOff)
	}
}

func (s *Shells) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy == 0 && len(s.ready) < s.n
}

func (s *Shells) launch(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	shell, err := Launch(limited, s.launcher, sandbox.NewVMID(), 0, s.faults)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.ready = append(s.ready, shell)
	s.mu.Unlock()
	s.wg.Go(func() {
		select {
		case <-shell.Done():
			s.refill()
		case <-ctx.Done():
		}
	})
	return nil
}

// clear kills the shells that are ready and for which f holds, and returns how
// many those were.
func (s *Shells) clear(ctx context.Context, f func(*Shell) bool) int {
	s.mu.Lock()
	var gone, left []*Shell
	for _, shell := range s.ready {
		if f(shell) {
			gone = append(gone, shell)
		} else {
			left = append(left, shell)
		}
	}
	s.ready = left
	s.mu.Unlock()
	for _, shell := range gone {
		if shell.ended() {
			s.log.Warn("a VMM that waited for its VM has ended", "vm", shell.ID(), "console", lastWords(shell.process))
		}
		ctx, cancel := cleanup.Context(ctx)
		if err := shell.Kill(ctx); err != nil {
			s.log.Error("a VMM was not cleared", "vm", shell.ID(), "err", err)
		}
		cancel()
	}
	return len(gone)
}

func (s *Shell) ended() bool {
	select {
	case <-s.Done():
		return true
	default:
		return false
	}
}

// Ready is how many shells wait to be used.
func (s *Shells) Ready() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ready)
}

// Close kills the shells that were not used. Nobody uses one any more.
func (s *Shells) Close() {
	s.stop()
	s.wg.Wait()
}
