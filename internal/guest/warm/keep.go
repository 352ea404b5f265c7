package warm

import (
	"context"
	"errors"
	"time"
)

// keep makes ready processes as they are wanted until ctx ends. It replaces the
// one that waits if that dies.
func (i *Interpreter) keep(ctx context.Context) {
	defer i.end()
	rest := minRest
	for {
		i.endStale()
		waiting, wanted, epoch := i.state()
		switch {
		case waiting != nil:
			select {
			case <-waiting.proc.Child().Done():
				i.drop(waiting)
			case <-i.wake:
			case <-ctx.Done():
				return
			}
		case !wanted:
			select {
			case <-i.wake:
			case <-ctx.Done():
				return
			}
		default:
			began := time.Now()
			r, err := i.maker.make(ctx)
			if ctx.Err() != nil {
				if err == nil {
					r.discard()
				}
				return
			}
			if err == nil {
				rest = minRest
				i.offer(r, epoch, time.Since(began))
				continue
			}
			i.cfg.Log.Warn("no interpreter could be started ahead", "err", err, "rest_ms", rest.Milliseconds())
			i.fail(err)
			if !pause(ctx, rest) {
				return
			}
			rest = min(2*rest, maxRest)
			i.hope()
		}
	}
}

func (i *Interpreter) state() (waiting *ready, wanted bool, epoch int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ready, i.spare || i.waiters > 0, i.epoch
}

// offer makes r, which took so long to make, the one that waits, unless it was
// begun before the last one expired.
func (i *Interpreter) offer(r *ready, epoch int, took time.Duration) {
	i.mu.Lock()
	i.standing = true
	if i.cfg.Recipe.Kind == Prestart {
		i.took = took
	}
	stale := epoch != i.epoch
	if !stale {
		i.ready, i.spare = r, false
		i.announce()
	}
	i.mu.Unlock()
	if stale {
		r.discard()
	}
}

// endStale ends the processes that have expired.
func (i *Interpreter) endStale() {
	i.mu.Lock()
	stale := i.stale
	i.stale = nil
	i.mu.Unlock()
	for _, r := range stale {
		r.discard()
	}
}

// drop gives up a process that died while it waited, if nobody took it.
func (i *Interpreter) drop(dead *ready) {
	i.mu.Lock()
	mine := i.ready == dead
	if mine {
		i.ready, i.spare = nil, true
	}
	i.mu.Unlock()
	if mine {
		dead.discard()
	}
}

// fail sends everybody who waits to the plain interpreter, and whoever comes.
func (i *Interpreter) fail(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.failed, i.standing, i.spare = err, false, true
	i.announce()
}

// hope ends the time of rest after a failure.
func (i *Interpreter) hope() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.failed = nil
}

// end leaves nothing behind.
func (i *Interpreter) end() {
	i.endStale()
	i.mu.Lock()
	r := i.ready
	i.ready, i.standing, i.failed = nil, false, errors.New("it was closed")
	i.announce()
	i.mu.Unlock()
	if r != nil {
		r.discard()
	}
	i.maker.close()
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
