package engine

import (
	"sync"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// alarm goes off at the earliest of the times that it was set to. Setting it to a
// later one wakes nobody.
type alarm struct {
	timer *time.Timer
	now   func() time.Time

	mu sync.Mutex
	at time.Time // zero if it is not set
}

func newAlarm(now func() time.Time) *alarm {
	a := &alarm{timer: time.NewTimer(time.Hour), now: now}
	a.timer.Stop()
	return a
}

// by sets the alarm; the zero time sets it to nothing.
func (a *alarm) by(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.IsZero() || !a.at.IsZero() && !t.Before(a.at) {
		return
	}
	a.at = t
	a.timer.Reset(t.Sub(a.now()))
}

// off is called by who has received from the timer, and before what was set is
// looked at: from then on it counts again.
func (a *alarm) off() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = time.Time{}
}

// watchDeadlines takes down the sandboxes whose time is over.
func (e *Engine) watchDeadlines() {
	defer e.alarm.timer.Stop()
	for {
		select {
		case <-e.quit:
			return
		case <-e.alarm.timer.C:
			e.alarm.off()
			e.endOverdue()
		}
	}
}

// endOverdue dooms each sandbox whose deadline has come, and sets the alarm for
// the others.
func (e *Engine) endOverdue() {
	for _, en := range e.all() {
		next, overdue := en.expire(e.cfg.Now())
		if overdue != "" {
			_ = e.doom(en) // logged, and its owner removes the record anyhow
			continue
		}
		e.alarm.by(next)
	}
}

// deadline returns when the sandbox is to end and why, zero if it does not run. The
// caller holds en.mu.
func (en *entry) deadline() (time.Time, reason) {
	if en.sb.State != sandbox.Running || en.left {
		return time.Time{}, ""
	}
	end := en.began.Add(en.sb.Limits.Lifetime)
	if unused := en.idleSince.Add(en.sb.Limits.IdleTimeout); en.execs == 0 && unused.Before(end) {
		return unused, idle
	}
	return end, expired
}

// expire condemns a sandbox whose deadline has come and returns why; the caller
// dooms it. For one that has time left it returns the deadline, and for one that
// does not run nothing.
func (en *entry) expire(now time.Time) (next time.Time, overdue reason) {
	en.mu.Lock()
	defer en.mu.Unlock()
	next, why := en.deadline()
	if next.IsZero() || next.After(now) {
		return next, ""
	}
	en.sentence(why)
	return time.Time{}, why
}
