package engine

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// drainTimeout is how long requests that are under way may take to finish when
// the daemon leaves.
const drainTimeout = 30 * time.Second

// errLeft is what became of a program that still ran then.
var errLeft = &sandbox.Error{
	Code: sandbox.CodeLost, Message: "emberd ended while the program ran, which goes on and is found among the sandbox's execs",
}

// Leave refuses new sandboxes, lets the requests that are under way finish, for
// as long as drainTimeout, and then lets go of every sandbox: each goes on, and
// the next daemon with it. What is being taken down is taken down before.
// Requests that were not done end with an error. It may be called again.
func (e *Engine) Leave(ctx context.Context) {
	e.mu.Lock()
	e.closing = true
	again := e.leaving
	e.leaving = true
	e.mu.Unlock()
	if again {
		return
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	e.cfg.Foreground.Quiet(drain)
	for _, en := range e.shut() {
		en.abort(sandbox.ErrClosing)
	}
	close(e.leave)
	e.depart(errLeft)
	e.wg.Wait()
	for _, en := range e.all() {
		if _, vm := en.snapshot(); vm != nil {
			vm.Leave()
		}
	}
}

// left tells whether the sandboxes are the next daemon's.
func (e *Engine) left() bool {
	select {
	case <-e.leave:
		return true
	default:
		return false
	}
}

// shut refuses new sandboxes and ends what watches the deadlines. It returns the
// sandboxes that there are.
func (e *Engine) shut() []*entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.quit:
	default:
		close(e.quit)
	}
	e.closing = true
	return slices.Collect(maps.Values(e.entries))
}

// all returns the sandboxes of which there is anything.
func (e *Engine) all() []*entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.entries))
}

// letGo leaves a sandbox that runs to the next daemon, and tells whether it did:
// from then on nobody condemns it.
func (en *entry) letGo() bool {
	en.mu.Lock()
	defer en.mu.Unlock()
	en.left = en.sb.State == sandbox.Running
	return en.left
}

func (en *entry) isLeft() bool {
	en.mu.Lock()
	defer en.mu.Unlock()
	return en.left
}
