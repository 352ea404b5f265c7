package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
)

// reason is why a sandbox is taken down, as people are told.
type reason string

const (
	failed       reason = "it could not be created"
	deleted      reason = "it was deleted"
	expired      reason = "its lifetime was over"
	idle         reason = "it was idle for too long"
	ended        reason = "its microVM ended"
	oomKilled    reason = "its microVM was ended by the host's OOM killer"
	unresponsive reason = "its agent did not answer"
	disconnected reason = "the connection to its agent broke"
	closing      reason = "emberd is shutting down"
	lost         reason = "it was lost while emberd was away"
	unfinished   reason = "it was not made, or not taken down, when emberd ended"
)

// abandon takes down a sandbox whose create failed. What cannot be done now is
// tried again behind the answer.
func (e *Engine) abandon(ctx context.Context, en *entry) error {
	en.condemn(sandbox.Creating, failed)
	en.mu.Lock()
	en.sb.Once = sandbox.Once{} // whoever asks again has another one made
	en.mu.Unlock()
	close(en.doomed)
	clean, cancel := cleanup.Context(ctx)
	defer cancel()
	err := e.takeDown(clean, en)
	if err != nil {
		e.wg.Go(func() { e.clear(context.WithoutCancel(ctx), en) })
	}
	return err
}

// Delete ends a sandbox. It returns when the sandbox is out of reach and its
// record says so; the VM is killed and cleared up behind it. Of several deletes
// one succeeds, and for the others there is no such sandbox.
func (e *Engine) Delete(ctx context.Context, id sandbox.ID) error {
	e.cfg.Foreground.Enter()
	defer e.cfg.Foreground.Leave()
	en := e.find(id)
	// An id that is still being created was told nobody.
	if en == nil {
		return sandbox.ErrNotFound
	}
	if !en.condemn(sandbox.Running, deleted) {
		if en.isLeft() {
			return sandbox.ErrClosing
		}
		return en.notFound(ctx)
	}
	err := e.doom(en)
	if err == nil {
		return nil
	}
	// The record says that it runs, so only the record's end will do.
	select {
	case <-en.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("delete %s: %w", id, errors.Join(context.Cause(ctx), err))
	}
}

// doom records that a sandbox which the caller condemned is being taken down,
// and has its owner do that, even if it cannot be recorded. From the record on
// nobody finds it: a client that did not would be told otherwise by the next
// daemon, if this one were killed in between.
func (e *Engine) doom(en *entry) error {
	defer close(en.doomed)
	en.record.Lock()
	defer en.record.Unlock()
	sb, _ := en.snapshot()
	err := e.cfg.Faults.Hit(FaultDelete)
	if err == nil {
		err = e.cfg.Store.Put(sb)
	}
	if err != nil {
		e.cfg.Log.Error("the end of a sandbox was not recorded", "sandbox_id", sb.ID, "err", err)
		return err
	}
	en.mu.Lock()
	defer en.mu.Unlock()
	en.shown = false
	return nil
}

// notFound returns that there is no such sandbox, as soon as that is so for
// everybody and for good.
func (en *entry) notFound(ctx context.Context) error {
	if _, _, there := en.visible(); !there {
		return sandbox.ErrNotFound
	}
	select {
	case <-en.doomed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, _, there := en.visible(); !there {
		return sandbox.ErrNotFound
	}
	select {
	case <-en.gone:
		return sandbox.ErrNotFound
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// The clearing of a sandbox begins in a lull between requests, or when patience
// is over: the end of a VMM keeps a CPU busy for longer than an answer does.
const (
	lull     = 20 * time.Millisecond
	patience = 200 * time.Millisecond
)

// clear takes a sandbox down for which nobody waits. What cannot be done is
// tried again until the engine is closed.
func (e *Engine) clear(ctx context.Context, en *entry) {
	e.cfg.Foreground.StandBack(e.quit, lull, patience)
	sb, _ := en.snapshot()
	_ = cleanup.Persist(ctx, e.quit,
		func(ctx context.Context) error { return e.takeDown(ctx, en) },
		func(err error) {
			e.cfg.Log.Error("sandbox was not cleared", "sandbox_id", sb.ID, "vm", sb.VM, "err", err)
		})
}

// takeDown removes everything a sandbox has, then its record, then its place in
// the table. The caller owns it; after an error, it can be tried again.
func (e *Engine) takeDown(ctx context.Context, en *entry) error {
	sb, vm := en.snapshot()
	err := e.cfg.Faults.Hit(FaultClear)
	switch {
	case err != nil:
	case vm != nil:
		err = vm.Kill(ctx)
	case en.remove != nil:
		err = en.remove(ctx)
	}
	if err == nil {
		en.record.Lock()
		err = e.removeRecord(sb)
		en.record.Unlock()
	}
	if err != nil {
		return fmt.Errorf("take down %s: %w", sb.ID, err)
	}
	e.mu.Lock()
	delete(e.entries, sb.ID)
	e.release(sb.Limits.Size)
	e.mu.Unlock()
	en.mu.Lock()
	en.sb.State = en.sb.State.To(sandbox.Gone)
	en.shown = false
	why := en.end
	en.mu.Unlock()
	close(en.gone)
	e.tellEnd(sb, why)
	e.cfg.Log.Info("sandbox gone", "sandbox_id", sb.ID, "pack", sb.Pack, "reason", string(why))
	return nil
}

// condemn marks a sandbox that is in state from as being taken down, so that
// nothing new begins in it. It tells whether it did: then it is for the caller
// to have doomed closed.
func (en *entry) condemn(from sandbox.State, why reason) bool {
	en.mu.Lock()
	defer en.mu.Unlock()
	if en.sb.State != from || en.left {
		return false
	}
	en.sentence(why)
	return true
}

// sentence is condemn for a caller that holds en.mu and knows the state.
func (en *entry) sentence(why reason) {
	en.shown = en.sb.State == sandbox.Running
	en.sb.State = en.sb.State.To(sandbox.Deleting)
	en.end = why
}

// Close refuses new sandboxes, aborts the creates that are under way, deletes
// every sandbox and returns when all of it is done. It may be called again,
// which tries again what could not be done.
func (e *Engine) Close(ctx context.Context) error {
	all := e.shut()
	for _, en := range all {
		en.abort(sandbox.ErrClosing)
		if en.condemn(sandbox.Running, closing) {
			close(en.doomed)
		}
	}
	e.wg.Wait()

	e.last.Lock()
	defer e.last.Unlock()
	left := e.all()
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	var errs []error
	for _, en := range left {
		errs = append(errs, e.takeDown(ctx, en))
	}
	return errors.Join(errs...)
}
