package engine

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// exitUnknown stands for the exit code when there is none to report.
const exitUnknown = -1

// Exec runs one program and waits for its end. When ctx ends first, the program
// is killed. What it writes beyond the sandbox's limit is read and dropped, so
// that it is not left blocked, and the result says so.
func (e *Engine) Exec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (res sandbox.ExecResult, err error) {
	en := e.find(id)
	if en == nil {
		return sandbox.ExecResult{}, sandbox.ErrNotFound
	}
	vm, limits, err := en.beginExec(req)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	defer e.endExec(en)
	e.cfg.Foreground.Enter()
	defer e.cfg.Foreground.Leave()
	sb, _ := en.snapshot()
	began := e.cfg.Now()
	defer func() { e.tellExec(ctx, sb, began, res, err) }()
	stdout, stderr := capped{left: limits.OutputBytes}, capped{left: limits.OutputBytes}
	exit, err := vm.Agent.Exec(ctx,
		agent.Command{Code: req.Code, Timeout: cmp.Or(req.Timeout, limits.ExecTimeout)},
		agent.Stdio{Stdin: bytes.NewReader(req.Stdin), Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return sandbox.ExecResult{}, e.lost(ctx, en, vm, err)
	}
	res = sandbox.ExecResult{
		Stdout: stdout.buf.Bytes(), StdoutTruncated: stdout.truncated,
		Stderr: stderr.buf.Bytes(), StderrTruncated: stderr.truncated,
		ExitCode: exit.Code,
		Warm:     exit.Warm,
		Duration: exit.Duration,
		Hit:      sandbox.LimitsHit(exit.Hit),
	}
	switch {
	case exit.StartError != "":
		res.ExitCode, res.Err = exitUnknown, exit.StartError
	case exit.TimedOut:
		res.ExitCode, res.Err = exitUnknown, sandbox.ErrTextTimedOut
	}
	return res, nil
}

// beginExec counts a program in, if the sandbox runs and its limits allow it.
func (en *entry) beginExec(req sandbox.ExecRequest) (*provision.VM, sandbox.Limits, error) {
	en.mu.Lock()
	defer en.mu.Unlock()
	limits := en.sb.Limits
	switch {
	case en.sb.State != sandbox.Running:
		return nil, limits, sandbox.ErrNotFound
	case req.Timeout > limits.ExecTimeout:
		return nil, limits, sandbox.Invalid("timeout_ms is %d; the sandbox's exec_timeout_s allows %d at most",
			req.Timeout.Milliseconds(), limits.ExecTimeout.Milliseconds())
	case en.execs >= limits.Execs:
		return nil, limits, sandbox.OverQuota("%d programs run in the sandbox, as many as its limit execs allows", en.execs)
	}
	en.execs++
	return en.vm, limits, nil
}

// endExec counts a program out. From the last one on the sandbox is idle.
func (e *Engine) endExec(en *entry) {
	en.mu.Lock()
	en.execs--
	idle := en.execs == 0
	en.idleSince = e.cfg.Now()
	en.mu.Unlock()
	if idle {
		e.lookAgain()
	}
}

// deathNotice is how long after a broken stream the end of its VM is waited
// for, to tell a client which of the two it was.
const deathNotice = time.Second

// lost says why an exec has no result: its client went away, its sandbox was
// taken down, its VM ended, or its agent broke the protocol.
func (e *Engine) lost(ctx context.Context, en *entry, vm *provision.VM, cause error) error {
	if ctx.Err() != nil {
		return &sandbox.Error{Code: sandbox.CodeCanceled, Message: "the client went away; the program was killed", Cause: cause}
	}
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
