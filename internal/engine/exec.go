package engine

import (
	"bytes"
	"context"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
)

// MaxOutput is how much of each output stream an exec's result carries, in
// bytes. What a program writes beyond it is read and dropped, so that the
// program is not left blocked, and the result says so.
const MaxOutput = 16 << 20

// exitUnknown stands for the exit code when there is none to report.
const exitUnknown = -1

// Exec runs one program and waits for its end. When ctx ends first, the program
// is killed.
func (e *Engine) Exec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecResult, error) {
	_, vm, err := e.running(id)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	stdout, stderr := capped{left: MaxOutput}, capped{left: MaxOutput}
	exit, err := vm.Agent.Exec(ctx,
		agent.Command{Code: req.Code, Timeout: req.Timeout},
		agent.Stdio{Stdin: bytes.NewReader(req.Stdin), Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return sandbox.ExecResult{}, e.lost(ctx, id, vm, err)
	}
	res := sandbox.ExecResult{
		Stdout: stdout.buf.Bytes(), StdoutTruncated: stdout.truncated,
		Stderr: stderr.buf.Bytes(), StderrTruncated: stderr.truncated,
		ExitCode: exit.Code,
		Duration: exit.Duration,
	}
	switch {
	case exit.StartError != "":
		res.ExitCode, res.Err = exitUnknown, exit.StartError
	case exit.TimedOut:
		res.ExitCode, res.Err = exitUnknown, sandbox.ErrTextTimedOut
	}
	return res, nil
}

// deathNotice is how long after a broken stream the end of its VM is waited
// for, to tell a client which of the two it was.
const deathNotice = time.Second

// lost says why an exec has no result: its client went away, its VM ended, or
// its agent broke the protocol.
func (e *Engine) lost(ctx context.Context, id sandbox.ID, vm *provision.VM, cause error) error {
	if ctx.Err() != nil {
		return &sandbox.Error{Code: sandbox.CodeCanceled, Message: "the client went away; the program was killed", Cause: cause}
	}
	timer := time.NewTimer(deathNotice)
	defer timer.Stop()
	select {
	case <-vm.Done():
		return sandbox.ErrLost.Because(cause)
	case <-timer.C:
		e.cfg.Log.Warn("exec has no result", "sandbox_id", id, "err", cause)
		return &sandbox.Error{
			Code: sandbox.CodeLost, Message: "the connection to the program broke; its exit code is unknown", Cause: cause,
		}
	}
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
	c.buf.Write(keep)
	return len(p), nil
}
