package engine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry/trace"
)

// sharedExec is a program that is to be started once, and those who wait for it.
// What becomes of one that nobody waits for is asked of its guest: the guest
// remembers the id, which follows from the request, and so no daemon has to.
type sharedExec struct {
	once sandbox.Once
	out  *outputs
	// waiting is how many clients there are; the entry's mu guards it.
	waiting int
	// done is closed when the rest is there to be read.
	done chan struct{}
	res  sandbox.ExecResult
	err  error
}

// carryOut runs a program that is to be started once, or starts it, or finds out
// what became of it.
type carryOut func(ctx context.Context, en *entry, req sandbox.ExecRequest, out *outputs) (sandbox.ExecResult, error)

// execOnce has the first of those who send a request carry it out, whose client
// may go away, and the others wait.
func (e *Engine) execOnce(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest, how carryOut) (sandbox.ExecResult, error) {
	en := e.find(id)
	if en == nil {
		return sandbox.ExecResult{}, sandbox.ErrNotFound
	}
	ex := req.Once.ExecID(id)
	x, first, err := e.joinExec(en, ex, req.Once)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	if first {
		go func() { // which the engine waits for, as it was counted in
			defer e.wg.Done()
			x.res, x.err = how(context.WithoutCancel(ctx), en, req, x.out)
			en.mu.Lock()
			if en.once[ex] == x {
				delete(en.once, ex)
			}
			en.mu.Unlock()
			close(x.done)
		}()
	}
	select {
	case <-x.done:
		trace.From(ctx).Set("emberd.result", howItEnded(x.res, x.err))
		return x.res, x.err
	case <-ctx.Done():
	}
	en.mu.Lock()
	defer en.mu.Unlock()
	if x.waiting--; x.waiting == 0 && en.once[ex] == x {
		delete(en.once, ex)
		x.out.abandon()
	}
	return sandbox.ExecResult{}, wentAway(ctx, ex)
}

// joinExec has one more client wait for a program. Who is the first carries it
// out, and then calls e.wg.Done.
func (e *Engine) joinExec(en *entry, ex sandbox.ExecID, once sandbox.Once) (x *sharedExec, first bool, err error) {
	en.mu.Lock()
	defer en.mu.Unlock()
	switch {
	case en.sb.State != sandbox.Running:
		return nil, false, sandbox.ErrNotFound
	case en.left:
		return nil, false, sandbox.ErrClosing
	}
	if x = en.once[ex]; x == nil {
		first = true
		x = &sharedExec{once: once, out: newOutputs(en.sb.Limits), done: make(chan struct{})}
		if en.once == nil {
			en.once = make(map[sandbox.ExecID]*sharedExec)
		}
		en.once[ex] = x
		e.wg.Add(1) // its watcher is counted as well
	}
	if x.once != once {
		return nil, false, sandbox.ErrKeyReused
	}
	x.waiting++
	return x, first, nil
}

// notStarted tells whether an agent started no program because it knows its id.
func notStarted(err error) bool {
	return errors.Is(err, agent.ErrExists) || errors.Is(err, agent.ErrDiffers) || errors.Is(err, agent.ErrMany)
}

// attempts is how often a guest is asked for a program and then to start it. It may
// get to know of it in between from a daemon that was killed.
const attempts = 3

// findOrStart asks the guest what it knows of a program. If that is nothing, it
// calls start; else found, with an error if no more is known than that it was
// started.
func (e *Engine) findOrStart(ctx context.Context, en *entry, req sandbox.ExecRequest, start func(sandbox.ID) (sandbox.ExecResult, error),
	found func(sandbox.ExecID, *provision.VM, error) (sandbox.ExecResult, error),
) (res sandbox.ExecResult, err error) {
	sb, vm := en.snapshot()
	ex := req.Once.ExecID(sb.ID)
	for range attempts {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		_, err = vm.Agent.ExecOnce(ask, string(ex), req.Once.Digest())
		cancel()
		switch {
		case err == nil || errors.Is(err, agent.ErrExists):
			return found(ex, vm, err)
		case !errors.Is(err, agent.ErrNoExec):
			return res, e.execError(ctx, en, vm, err)
		}
		if res, err = start(sb.ID); !errors.Is(err, agent.ErrExists) {
			break
		}
	}
	if notStarted(err) {
		err = e.execError(ctx, en, vm, err)
	}
	return res, err
}

// runOnce runs a program to its end.
func (e *Engine) runOnce(ctx context.Context, en *entry, req sandbox.ExecRequest, out *outputs) (sandbox.ExecResult, error) {
	return e.findOrStart(ctx, en, req, func(id sandbox.ID) (sandbox.ExecResult, error) {
		run, err := e.beginExec(ctx, id, req)
		if err != nil {
			return sandbox.ExecResult{}, err
		}
		defer e.wg.Done()
		return e.attend(ctx, run, req, out)
	}, func(ex sandbox.ExecID, vm *provision.VM, err error) (sandbox.ExecResult, error) {
		if err != nil {
			return sandbox.ExecResult{}, forgotten(ex, 0)
		}
		return e.retrieve(ctx, en, vm, ex, out)
	})
}

// startOnce starts a program, and does not wait for its end.
func (e *Engine) startOnce(ctx context.Context, en *entry, req sandbox.ExecRequest, _ *outputs) (sandbox.ExecResult, error) {
	return e.findOrStart(ctx, en, req, func(id sandbox.ID) (sandbox.ExecResult, error) {
		ex, err := e.startExec(ctx, id, req)
		return sandbox.ExecResult{ID: ex}, err
	}, func(ex sandbox.ExecID, _ *provision.VM, _ error) (sandbox.ExecResult, error) {
		return sandbox.ExecResult{ID: ex}, nil
	})
}

// retrieve waits for the end of a program that was started before, and reads what it
// wrote.
func (e *Engine) retrieve(ctx context.Context, en *entry, vm *provision.VM, ex sandbox.ExecID, out *outputs) (sandbox.ExecResult, error) {
	sb, _ := en.snapshot()
	ctx, stop := e.whileStaying(ctx)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, sb.Limits.ExecTimeout+endGrace)
	defer cancel()
	exit, err := vm.Agent.AwaitExec(ctx, string(ex))
	if err == nil {
		read, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		err = errors.Join(
			copyOutput(read, vm, ex, agent.Stdout, outputWriter{out, &out.stdout}),
			copyOutput(read, vm, ex, agent.Stderr, outputWriter{out, &out.stderr}),
		)
	}
	if gone, ok := errors.AsType[*agent.GoneError](err); ok {
		return sandbox.ExecResult{}, forgotten(ex, gone.First)
	}
	if errors.Is(err, agent.ErrNoExec) { // a moment ago
		return sandbox.ExecResult{}, forgotten(ex, 0)
	}
	if err != nil {
		return sandbox.ExecResult{}, e.execError(ctx, en, vm, err)
	}
	res := result(ex, exit)
	out.give(&res)
	return res, nil
}

// copyOutput copies what is kept of one of a program's outputs, from the beginning.
func copyOutput(ctx context.Context, vm *provision.VM, ex sandbox.ExecID, from agent.Stream, to io.Writer) error {
	r, err := vm.Agent.ReadExec(ctx, string(ex), from, 0, false)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	_, err = io.Copy(to, r)
	return err
}

// forgotten is an error for a program that was run, and whose whole result can no
// longer be had.
func forgotten(ex sandbox.ExecID, first int64) error {
	return &sandbox.Error{
		Code: sandbox.CodeOutputGone, FirstOffset: first,
		Message: fmt.Sprintf("the request was carried out before, as %s; not all of what its program wrote is still kept", ex),
	}
}
