package engine

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// errNoOutcome is what those are told who waited for a create that panicked.
var errNoOutcome = errors.New("the request that was waited for had no outcome")

// answers is what became of the creates that are to be carried out once, by name:
// of those that are under way, and of those that made a sandbox, whether there
// still is one or not. One that fails is forgotten, since nothing is left of it.
// What it holds is in the records of the sandboxes, too. The engine's mu guards it.
type answers struct {
	max    int
	byName map[string]*answer
	kept   []*answer // the oldest first
}

// answer is what became of one create.
type answer struct {
	once sandbox.Once
	// done is closed when the rest is there to be read.
	done chan struct{}
	sb   sandbox.Sandbox
	err  error
}

func newAnswers(most int) answers {
	return answers{max: most, byName: make(map[string]*answer)}
}

// claim returns the answer of a request, and whether it is for the caller to give
// it.
func (a *answers) claim(once sandbox.Once) (_ *answer, first bool, err error) {
	name := once.Name()
	known := a.byName[name]
	switch {
	case known == nil && len(a.byName) >= a.max:
		return nil, false, sandbox.OverQuota("%d requests with an Idempotency-Key are remembered, each for %d hours, as many as this emberd does; without one the request is taken",
			len(a.byName), int(sandbox.OnceFor.Hours()))
	case known == nil:
		known = &answer{once: once, done: make(chan struct{}), err: errNoOutcome}
		a.byName[name] = known
		return known, true, nil
	case known.once != once:
		return nil, false, sandbox.ErrKeyReused
	}
	return known, false, nil
}

// give gives the answer of a request that was claimed.
func (a *answers) give(to *answer, sb sandbox.Sandbox, err error) {
	to.sb, to.err = sb, err
	if err == nil {
		a.kept = append(a.kept, to)
	} else {
		delete(a.byName, to.once.Name())
	}
	close(to.done)
}

// recall takes in the sandboxes that earlier daemons made.
func (a *answers) recall(all []sandbox.Sandbox) {
	slices.SortFunc(all, func(x, y sandbox.Sandbox) int { return cmp.Compare(x.AskedAt, y.AskedAt) })
	for _, sb := range all {
		known := &answer{once: sb.Once, done: make(chan struct{})}
		a.byName[sb.Once.Name()] = known
		a.give(known, sb, nil)
	}
}

// expire forgets what was asked for too long before now, and returns it.
func (a *answers) expire(now time.Duration) (old []sandbox.Sandbox) {
	for len(a.kept) > 0 && now-a.kept[0].sb.AskedAt >= sandbox.OnceFor {
		old = append(old, a.kept[0].sb)
		delete(a.byName, a.kept[0].once.Name())
		a.kept[0] = nil
		a.kept = a.kept[1:]
	}
	return old
}

// createOnce makes a sandbox for a request that is to be carried out once, or
// returns the one that it made before. The first to ask for it makes it, even if
// its client goes away, as it may come back; the others wait.
func (e *Engine) createOnce(ctx context.Context, spec sandbox.Spec) (sb sandbox.Sandbox, err error) {
	e.mu.Lock()
	// Before it has recovered, an engine does not know what there is.
	if err = e.refusal(); errors.Is(err, sandbox.ErrStarting) {
		e.mu.Unlock()
		return sandbox.Sandbox{}, err
	}
	e.forgetOld()
	to, first, err := e.answers.claim(spec.Once)
	e.mu.Unlock()
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	if !first {
		select {
		case <-to.done:
			return to.sb, to.err
		case <-ctx.Done():
			return sandbox.Sandbox{}, context.Cause(ctx)
		}
	}
	err = errNoOutcome
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.answers.give(to, sb, err)
	}()
	sb, err = e.create(context.WithoutCancel(ctx), spec)
	return sb, err
}

// forgetOld forgets the requests that were carried out long ago. Their sandboxes
// are gone, unless they are allowed to live longer than a request is remembered.
// The caller holds e.mu.
func (e *Engine) forgetOld() {
	if e.closing {
		return // nobody waits for what would be begun now
	}
	for _, sb := range e.answers.expire(e.cfg.Uptime()) {
		if e.entries[sb.ID] != nil {
			continue // it is removed with its record
		}
		e.wg.Go(func() {
			if err := e.cfg.Store.Forget(sb.ID); err != nil {
				e.cfg.Log.Error("the record of a sandbox that is gone was not removed", "sandbox_id", sb.ID, "err", err)
			}
		})
	}
}

// removeRecord removes the record of a sandbox of which nothing is left, or puts
// it aside if the request for it is to be remembered: if it may have been answered.
func (e *Engine) removeRecord(sb sandbox.Sandbox) error {
	if sb.Once.IsZero() || e.cfg.Uptime()-sb.AskedAt >= sandbox.OnceFor {
		return e.cfg.Store.Delete(sb.ID)
	}
	return e.cfg.Store.Retire(sb.ID)
}

// remember returns the sandboxes that earlier daemons made and whose requests are
// still to be remembered, out of the records of those that there are.
func (e *Engine) remember(there []sandbox.Sandbox) []sandbox.Sandbox {
	retired, err := e.cfg.Store.LoadRetired()
	if err != nil {
		e.cfg.Log.Error("records of requests that cannot be read were set aside", "err", err)
	}
	now := e.cfg.Uptime()
	var all []sandbox.Sandbox
	for _, sb := range retired {
		if now-sb.AskedAt >= sandbox.OnceFor || sb.AskedAt > now {
			if err := e.cfg.Store.Forget(sb.ID); err != nil {
				e.cfg.Log.Error("the record of a sandbox that is gone was not removed", "sandbox_id", sb.ID, "err", err)
			}
			continue
		}
		all = append(all, sb)
	}
	for _, sb := range there {
		if !sb.Once.IsZero() && sb.State != sandbox.Creating && now-sb.AskedAt < sandbox.OnceFor {
			all = append(all, sb)
		}
	}
	return all
}
