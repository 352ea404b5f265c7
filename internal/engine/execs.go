package engine

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

const (
	// startTimeout is how long an agent may take to start a program.
	startTimeout = 30 * time.Second
	// askTimeout is how long it may take to answer a question about one.
	askTimeout = 10 * time.Second
	// endGrace is how much longer than its limit a program counts if the agent
	// does not tell that it ended.
	endGrace = 10 * time.Second
)

// StartExec starts one program and does not wait for its end.
func (e *Engine) StartExec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecID, error) {
	e.cfg.Foreground.Enter()
	defer e.cfg.Foreground.Leave()
	if !req.Once.IsZero() {
		res, err := e.execOnce(ctx, id, req, e.startOnce)
		return res.ID, err
	}
	return e.startExec(ctx, id, req)
}

func (e *Engine) startExec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecID, error) {
	run, err := e.beginExec(ctx, id, req)
	if err != nil {
		return "", err
	}
	e.follow(run)
	// A client that goes away in the middle leaves a program that is counted.
	start, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	cmd := run.command(req)
	if err := run.vm.Agent.StartExec(start, cmd, req.Stdin, req.StdinOpen); err != nil {
		e.refused(run)
		defer e.wg.Done()
		if notStarted(err) {
			e.countOut(run.en)
			return "", err
		}
		e.endExec(run, sandbox.ExecResult{}, err)
		return "", e.execError(start, run.en, run.vm, err)
	}
	go func() { // which the engine waits for, as it was counted in
		defer e.wg.Done()
		e.await(context.WithoutCancel(ctx), run, cmd.Timeout)
	}()
	return run.ex, nil
}

// await counts a program out when it has ended.
func (e *Engine) await(ctx context.Context, run execution, limit time.Duration) {
	ctx, stop := e.whileStaying(ctx)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, limit+endGrace, errors.New("the guest did not tell how the program ended"))
	defer cancel()
	exit, err := run.vm.Agent.AwaitExec(ctx, string(run.ex))
	if err != nil {
		e.cfg.Log.Debug("exec has no result", "sandbox_id", run.sb.ID, "exec_id", run.ex, "err", err)
	}
	e.refused(run)
	e.endExec(run, result(run.ex, exit), err)
}

// resumeExecs counts in the programs that run in a VM which an earlier daemon
// began them in. The sandbox is running and has a watcher.
func (e *Engine) resumeExecs(ctx context.Context, en *entry) error {
	_, vm := en.snapshot()
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	list, err := vm.Agent.Execs(ask)
	if err != nil {
		return err
	}
	for _, run := range e.countInAll(en, list) {
		e.follow(run)
		go func() { // which the engine waits for, as it was counted in
			defer e.wg.Done()
			e.await(context.WithoutCancel(ctx), run, run.limits.ExecTimeout)
		}()
	}
	return nil
}

// countInAll counts in the programs of list that run.
func (e *Engine) countInAll(en *entry, list []agent.ExecState) (runs []execution) {
	en.mu.Lock()
	defer en.mu.Unlock()
	for _, state := range list {
		if state.Exit == nil && en.sb.State == sandbox.Running {
			run := e.countIn(en, sandbox.ExecID(state.ID))
			run.began = run.began.Add(-state.Age)
			runs = append(runs, run)
		}
	}
	return runs
}

// Execs returns the programs that the guest of a sandbox knows, in the order of
// their starts.
func (e *Engine) Execs(ctx context.Context, id sandbox.ID) ([]sandbox.Exec, error) {
	list := []sandbox.Exec{}
	err := e.ask(ctx, id, func(ctx context.Context, en *entry, vm *provision.VM) error {
		states, err := vm.Agent.Execs(ctx)
		refused := e.refusedTo(en)
		for _, state := range states {
			list = append(list, e.describeExec(state, refused))
		}
		return err
	})
	return list, err
}

// GetExec returns one of them.
func (e *Engine) GetExec(ctx context.Context, id sandbox.ID, ex sandbox.ExecID) (sandbox.Exec, error) {
	var exec sandbox.Exec
	err := e.ask(ctx, id, func(ctx context.Context, en *entry, vm *provision.VM) error {
		state, err := vm.Agent.ExecState(ctx, string(ex))
		exec = e.describeExec(state, e.refusedTo(en))
		return err
	})
	return exec, err
}

func (e *Engine) describeExec(state agent.ExecState, refused func(sandbox.ExecID) []sandbox.EgressDenial) sandbox.Exec {
	ex := sandbox.Exec{
		ID: sandbox.ExecID(state.ID), StartedAt: e.cfg.Now().Add(-state.Age).UTC(),
		Stdout: sandbox.Span(state.Stdout), Stderr: sandbox.Span(state.Stderr),
		StdinBytes: state.StdinBytes, StdinOpen: state.StdinOpen, EgressDenied: refused(sandbox.ExecID(state.ID)),
	}
	if state.Exit != nil {
		res := result(ex.ID, *state.Exit)
		ex.Result = &res
	}
	return ex
}

// FeedExec gives a program more input: all of it, or on an error nothing, as long
// as the agent answers.
func (e *Engine) FeedExec(ctx context.Context, id sandbox.ID, ex sandbox.ExecID, data []byte, end bool) error {
	return e.ask(ctx, id, func(ctx context.Context, _ *entry, vm *provision.VM) error {
		return vm.Agent.FeedExec(ctx, string(ex), data, end)
	})
}

// SignalExec sends a signal to a program's process group, and KILL to all that it
// started.
func (e *Engine) SignalExec(ctx context.Context, id sandbox.ID, ex sandbox.ExecID, signal sandbox.Signal) error {
	return e.ask(ctx, id, func(ctx context.Context, _ *entry, vm *provision.VM) error {
		return vm.Agent.SignalExec(ctx, string(ex), int(signal))
	})
}

// ExecOutput returns the output of a program from a position on. It ends with an
// error if it breaks off, also because the reader is so slow that bytes are gone
// which it has not read. The caller closes it.
func (e *Engine) ExecOutput(ctx context.Context, id sandbox.ID, ex sandbox.ExecID, req sandbox.OutputRequest) (io.ReadCloser, error) {
	// What can be refused is refused before there is anything to be read.
	state, err := e.GetExec(ctx, id, ex)
	if err != nil {
		return nil, err
	}
	span, stream := state.Stdout, agent.Stdout
	if req.Stderr {
		span, stream = state.Stderr, agent.Stderr
	}
	switch {
	case req.Offset < span.First:
		return nil, sandbox.OutputGone(span.First)
	case req.Offset > span.End:
		return nil, errBeyond
	}
	en, vm, err := e.running(id)
	if err != nil {
		return nil, err
	}
	out, err := vm.Agent.ReadExec(ctx, string(ex), stream, req.Offset, req.Follow)
	if err != nil {
		return nil, e.execError(ctx, en, vm, err)
	}
	return out, nil
}

// errBeyond refuses an offset.
var errBeyond = sandbox.Invalid("the output is not as long as offset")

// ask asks the agent of a sandbox about a program.
func (e *Engine) ask(ctx context.Context, id sandbox.ID, question func(context.Context, *entry, *provision.VM) error) error {
	en, vm, err := e.running(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := question(ctx, en, vm); err != nil {
		return e.execError(ctx, en, vm, err)
	}
	return nil
}

// running returns a sandbox that is running, and its VM.
func (e *Engine) running(id sandbox.ID) (*entry, *provision.VM, error) {
	if en := e.find(id); en != nil {
		if _, vm, there := en.visible(); there {
			return en, vm, nil
		}
	}
	return nil, nil, sandbox.ErrNotFound
}

// execError is what an agent's error means for a client.
func (e *Engine) execError(ctx context.Context, en *entry, vm *provision.VM, err error) error {
	if gone, ok := errors.AsType[*agent.GoneError](err); ok {
		return sandbox.OutputGone(gone.First)
	}
	switch {
	case errors.Is(err, agent.ErrNoExec):
		return sandbox.ErrExecNotFound
	case errors.Is(err, agent.ErrExecEnded):
		return sandbox.ErrExecEnded
	case errors.Is(err, agent.ErrInputFull):
		return sandbox.OverQuota("the input that programs have not read leaves no room for more")
	case errors.Is(err, agent.ErrBeyond):
		return errBeyond
	case errors.Is(err, agent.ErrDiffers):
		return sandbox.ErrKeyReused
	case errors.Is(err, agent.ErrMany):
		return sandbox.OverQuota("the sandbox remembers no more requests with an Idempotency-Key; without one the program is started")
	case errors.Is(context.Cause(ctx), context.Canceled):
		return err
	}
	return e.lost(en, vm, err)
}
