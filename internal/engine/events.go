package engine

import (
	"context"
	"errors"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// Events hears of what happens to sandboxes.
type Events interface {
	// Publish must not wait for anybody: it is called with locks held.
	Publish(event sandbox.Event)
}

// How programs end, as events tell.
const (
	execOK       = "ok"
	execFailed   = "failed" // a status other than 0
	execTimedOut = "timed_out"
	execUnknown  = "not_started"
	execLost     = "lost"
)

// tell publishes what happened to sb.
func (e *Engine) tell(sb sandbox.Sandbox, event sandbox.Event) {
	if e.cfg.Events == nil {
		return
	}
	event.Sandbox, event.Pack, event.BootPath = sb.ID, sb.Pack, sb.BootPath
	e.cfg.Events.Publish(event)
}

// tellRejected tells of a create that was refused for want of room.
func (e *Engine) tellRejected(pack string, err error) {
	if errors.Is(err, sandbox.ErrQuota) || errors.Is(err, sandbox.ErrCapacity) {
		code, _ := sandbox.Public(err)
		e.tell(sandbox.Sandbox{Pack: pack}, sandbox.Event{Kind: sandbox.EventRejected, Reason: string(code)})
	}
}

// tellFailed tells of a create that was admitted and failed.
func (e *Engine) tellFailed(ctx context.Context, en *entry, err error) {
	code, _ := sandbox.Public(err)
	if ctx.Err() != nil && code == sandbox.CodeInternal {
		code = sandbox.CodeCanceled
	}
	sb, _ := en.snapshot()
	e.tell(sb, sandbox.Event{Kind: sandbox.EventFailed, Reason: string(code), Took: e.cfg.Now().Sub(en.began)})
}

// tellExec tells how a program in sb ended that was asked for at began. One that
// this daemon leaves behind has not ended, and is the next one's to tell of.
func (e *Engine) tellExec(sb sandbox.Sandbox, began time.Time, res sandbox.ExecResult, err error) {
	if err != nil && e.left() {
		return
	}
	e.tell(sb, sandbox.Event{
		Kind: sandbox.EventExec, Reason: howItEnded(res, err),
		Took: e.cfg.Now().Sub(began), Ran: res.Duration, Warm: res.Warm,
	})
	if res.Hit.Memory {
		e.tell(sb, sandbox.Event{Kind: sandbox.EventOOM, Reason: "guest"})
	}
}

// howItEnded is the word for the end of a program.
func howItEnded(res sandbox.ExecResult, err error) string {
	switch {
	case err != nil:
		return execLost
	case res.Err == sandbox.ErrTextTimedOut:
		return execTimedOut
	case res.Err != "":
		return execUnknown
	case res.ExitCode != 0:
		return execFailed
	}
	return execOK
}

// tellEnd tells that nothing is left of sb, and why. A create that failed is told
// of where it fails.
func (e *Engine) tellEnd(sb sandbox.Sandbox, why reason) {
	if why == oomKilled {
		e.tell(sb, sandbox.Event{Kind: sandbox.EventOOM, Reason: "host"})
	}
	if kind, word := why.event(); kind != sandbox.EventFailed {
		e.tell(sb, sandbox.Event{Kind: kind, Reason: word, Took: e.cfg.Now().Sub(sb.CreatedAt)})
	}
}

// event is r as events tell it.
func (r reason) event() (kind sandbox.EventKind, word string) {
	switch r {
	case failed, unfinished:
		return sandbox.EventFailed, ""
	case lost:
		return sandbox.EventLost, "while_away"
	case deleted:
		return sandbox.EventDeleted, "request"
	case closing:
		return sandbox.EventDeleted, "shutdown"
	case expired:
		return sandbox.EventExpired, "lifetime"
	case idle:
		return sandbox.EventExpired, "idle"
	case ended:
		return sandbox.EventLost, "vmm_ended"
	case oomKilled:
		return sandbox.EventLost, "host_oom"
	case unresponsive:
		return sandbox.EventLost, "agent_silent"
	case disconnected:
		return sandbox.EventLost, "agent_disconnected"
	}
	return sandbox.EventLost, "other"
}

// Loads returns every sandbox of which there is anything, in no order.
func (e *Engine) Loads() []sandbox.Load {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]sandbox.Load, 0, len(e.entries))
	for _, en := range e.entries {
		sb, _ := en.snapshot()
		en.mu.Lock()
		all = append(all, sandbox.Load{Sandbox: sb, Execs: en.execs})
		en.mu.Unlock()
	}
	return all
}

// Promised returns what sandboxes may come to use together, and the most that it
// may be.
func (e *Engine) Promised() (promised, capacity Capacity) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.promised, e.cfg.Capacity
}
