package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry/trace"
)

// exitUnknown stands for the exit code when there is none to report.
const exitUnknown = -1

// Exec runs one program and waits for its end. When ctx ends first, the program
// goes on, under its limit and counted as before, and can be asked for by its id.
// What it writes beyond the sandbox's limit is read and dropped, so that it is
// not left blocked, and the result says so.
func (e *Engine) Exec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecResult, error) {
	if err := context.Cause(ctx); err != nil {
		return sandbox.ExecResult{}, err
	}
	e.cfg.Foreground.Enter()
	defer e.cfg.Foreground.Leave()
	if !req.Once.IsZero() {
		return e.execOnce(ctx, id, req, e.runOnce)
	}
	run, err := e.beginExec(ctx, id, req)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	out := newOutputs(run.limits)
	var res sandbox.ExecResult
	ended := make(chan struct{})
	go func() { // which the engine waits for, as it was counted in
		defer e.wg.Done()
		defer close(ended)
		res, err = e.attend(context.WithoutCancel(ctx), run, req, out)
	}()
	select {
	case <-ended:
		span := trace.From(ctx)
		span.Set("emberd.boot_path", string(run.sb.BootPath))
		span.Set("emberd.result", howItEnded(res, err))
		return res, err
	case <-ctx.Done():
		out.abandon()
		return sandbox.ExecResult{}, wentAway(ctx, run.ex)
	}
}

// wentAway is what becomes of a client that does not wait for its program.
func wentAway(ctx context.Context, ex sandbox.ExecID) error {
	return &sandbox.Error{
		Code: sandbox.CodeCanceled, Message: fmt.Sprintf("the client went away; the program goes on as %s", ex),
		Cause: context.Cause(ctx),
	}
}

// execution is one program that was counted in.
type execution struct {
	en     *entry
	sb     sandbox.Sandbox
	vm     *provision.VM
	limits sandbox.Limits
	ex     sandbox.ExecID
	began  time.Time
}

// attend runs a program to its end and counts it out.
func (e *Engine) attend(ctx context.Context, run execution, req sandbox.ExecRequest, out *outputs) (sandbox.ExecResult, error) {
	ctx, cancel := e.whileStaying(ctx)
	defer cancel()
	e.follow(run)
	exit, err := run.vm.Agent.Exec(ctx, run.command(req), agent.Stdio{
		Stdin:  bytes.NewReader(req.Stdin),
		Stdout: outputWriter{out, &out.stdout}, Stderr: outputWriter{out, &out.stderr}, Leave: out.unwanted,
	})
	denied := e.refused(run)
	if notStarted(err) {
		e.countOut(run.en)
		return sandbox.ExecResult{}, err
	}
	if err != nil {
		e.endExec(run, sandbox.ExecResult{}, err)
		return sandbox.ExecResult{}, e.lost(run.en, run.vm, err)
	}
	res := result(run.ex, exit)
	res.EgressDenied = denied
	out.give(&res)
	e.endExec(run, res, nil)
	return res, nil
}

// whileStaying returns a context that ends when the daemon leaves, which does not
// wait for programs.
func (e *Engine) whileStaying(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.staying, func() { cancel(errLeft) })
	return ctx, func() { stop(); cancel(nil) }
}

func (run execution) command(req sandbox.ExecRequest) agent.Command {
	return agent.Command{
		ID: string(run.ex), Digest: req.Once.Digest(), Code: req.Code, Timeout: cmp.Or(req.Timeout, run.limits.ExecTimeout),
	}
}

// result is how a program ended, without its output.
func result(ex sandbox.ExecID, exit agent.Exit) sandbox.ExecResult {
	res := sandbox.ExecResult{
		ID: ex, ExitCode: exit.Code, Warm: exit.Warm, Duration: exit.Duration, Hit: sandbox.LimitsHit(exit.Hit),
	}
	switch {
	case exit.StartError != "":
		res.ExitCode, res.Err = exitUnknown, exit.StartError
	case exit.TimedOut:
		res.ExitCode, res.Err = exitUnknown, sandbox.ErrTextTimedOut
	}
	return res
}

// beginExec counts a program in, if the sandbox runs and its limits allow it. Who
// begins it calls endExec, and then e.wg.Done.
func (e *Engine) beginExec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (execution, error) {
	if err := e.cfg.Faults.Hit(FaultExec); err != nil {
		return execution{}, err
	}
	en := e.find(id)
	if en == nil {
		return execution{}, sandbox.ErrNotFound
	}
	run, err := e.admitExec(en, req)
	if errors.Is(err, sandbox.ErrNotFound) {
		err = en.notFound(ctx)
	}
	return run, err
}

func (e *Engine) admitExec(en *entry, req sandbox.ExecRequest) (execution, error) {
	en.mu.Lock()
	defer en.mu.Unlock()
	limits := en.sb.Limits
	switch {
	case en.sb.State != sandbox.Running:
		return execution{}, sandbox.ErrNotFound
	case en.left:
		return execution{}, sandbox.ErrClosing
	case req.Timeout > limits.ExecTimeout:
		return execution{}, sandbox.Invalid("timeout_ms is %d; the sandbox's exec_timeout_s allows %d at most",
			req.Timeout.Milliseconds(), limits.ExecTimeout.Milliseconds())
	case en.execs >= limits.Execs:
		return execution{}, sandbox.OverQuota("%d programs run in the sandbox, as many as its limit execs allows", en.execs)
	}
	ex := sandbox.NewExecID()
	if !req.Once.IsZero() {
		ex = req.Once.ExecID(en.sb.ID)
	}
	return e.countIn(en, ex), nil
}

// countIn counts one program more. The caller holds en.mu and knows that the
// sandbox runs, so its watcher is counted by e.wg as well.
func (e *Engine) countIn(en *entry, ex sandbox.ExecID) execution {
	en.execs++
	e.wg.Add(1)
	return execution{en: en, sb: en.sb, vm: en.vm, limits: en.sb.Limits, ex: ex, began: e.cfg.Now()}
}

// endExec counts a program out and tells how it ended. From the last one on the
// sandbox is idle.
func (e *Engine) endExec(run execution, res sandbox.ExecResult, err error) {
	e.countOut(run.en)
	e.tellExec(run.sb, run.began, res, err)
}

// countOut counts one program less.
func (e *Engine) countOut(en *entry) {
	en.mu.Lock()
	defer en.mu.Unlock()
	en.execs--
	en.idleSince = e.cfg.Now()
	next, _ := en.deadline()
	e.alarm.by(next)
}

// deathNotice is how long after a broken stream the end of its VM is waited
// for, to tell a client which of the two it was.
const deathNotice = time.Second

// lost says why an exec has no result: its sandbox was taken down, its VM ended,
// or its agent broke the protocol.
func (e *Engine) lost(en *entry, vm *provision.VM, cause error) error {
	if e.left() {
		return errLeft.Because(cause)
	}
	timer := time.NewTimer(deathNotice)
	defer timer.Stop()
	died := false
	select {
	case <-vm.Done():
		died = true
	case <-timer.C:
	}
	en.mu.Lock()
	id, end := en.sb.ID, en.end
	en.mu.Unlock()
	if died && end == "" { // whoever takes it down was not as quick
		end = endOf(vm)
	}
	switch {
	case end != "" && end != ended:
		return &sandbox.Error{
			Code:    sandbox.CodeLost,
			Message: fmt.Sprintf("the sandbox was taken down while the program ran, because %s; its exit code is unknown", end),
			Cause:   cause,
		}
	case died:
		return sandbox.ErrLost.Because(cause)
	}
	e.cfg.Log.Warn("exec has no result", "sandbox_id", id, "err", cause)
	return &sandbox.Error{
		Code: sandbox.CodeLost, Message: "the connection to the program broke; its exit code is unknown", Cause: cause,
	}
}

// grownOutput is how much output grows a buffer by doubling, in bytes.
const grownOutput = 256 << 10

// outputs are those of one program.
type outputs struct {
	// unwanted is closed when nobody is going to read them.
	unwanted chan struct{}

	mu             sync.Mutex
	stdout, stderr capped
}

func newOutputs(l sandbox.Limits) *outputs {
	return &outputs{
		unwanted: make(chan struct{}),
		stdout:   capped{left: l.OutputBytes}, stderr: capped{left: l.OutputBytes},
	}
}

// abandon drops what there is, as the program may go on for long.
func (o *outputs) abandon() {
	close(o.unwanted)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stdout, o.stderr = capped{}, capped{}
}

// give puts into res what was written.
func (o *outputs) give(res *sandbox.ExecResult) {
	o.mu.Lock()
	defer o.mu.Unlock()
	res.Stdout, res.StdoutTruncated = o.stdout.buf.Bytes(), o.stdout.truncated
	res.Stderr, res.StderrTruncated = o.stderr.buf.Bytes(), o.stderr.truncated
}

// outputWriter takes in one of a program's outputs.
type outputWriter struct {
	of *outputs
	to *capped
}

func (w outputWriter) Write(p []byte) (int, error) {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	return w.to.Write(p)
}

// capped keeps the first left bytes written to it and notes that there were
// more.
type capped struct {
	buf       bytes.Buffer
	left      int
	truncated bool
}

func (c *capped) Write(p []byte) (int, error) {
	keep := p[:min(len(p), c.left)]
	c.left -= len(keep)
	c.truncated = c.truncated || len(keep) < len(p)
	if c.buf.Len() > grownOutput && c.left > c.buf.Available() {
		// All that there can be, which takes memory only as it comes. Doubling
		// would take three times the output.
		c.buf.Grow(len(keep) + c.left)
	}
	c.buf.Write(keep)
	return len(p), nil
}
