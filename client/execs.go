package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/emberd/emberd/api/rest"
)

// StartExec starts p in the sandbox id and returns the program's id without
// waiting for its end. The program goes on until it ends or its time limit is
// reached, whatever becomes of the client or the daemon. With stdinOpen its input
// goes on after p.Stdin, see [Client.Feed].
func (c *Client) StartExec(ctx context.Context, id string, p Program, stdinOpen bool) (string, error) {
	var started rest.StartResponse
	req := rest.StartRequest{ExecRequest: p.request(), StdinOpen: stdinOpen}
	err := c.do(ctx, http.MethodPost, sandboxPath(id)+"/execs", req, &started, once(p.Key))
	return started.ExecID, err
}

// Execs returns the programs of the sandbox id that run, and those that ended and
// that it remembers, in the order of their starts.
func (c *Client) Execs(ctx context.Context, id string) ([]rest.Exec, error) {
	var list rest.ExecList
	err := c.do(ctx, http.MethodGet, sandboxPath(id)+"/execs", nil, &list)
	return list.Execs, err
}

// ExecState returns what is known of the program ex.
func (c *Client) ExecState(ctx context.Context, id, ex string) (rest.Exec, error) {
	var state rest.Exec
	err := c.do(ctx, http.MethodGet, execPath(id, ex), nil, &state)
	return state, err
}

// Feed gives the program ex more input, at most 1 MiB: all of it, or on an [*Error]
// nothing. With end no more follows.
func (c *Client) Feed(ctx context.Context, id, ex string, data []byte, end bool) error {
	resp, err := c.sendBytes(ctx, http.MethodPost, execPath(id, ex)+"/stdin?end="+strconv.FormatBool(end), "application/octet-stream", data)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Signal sends the signal called name, such as "TERM", to the process group of the
// program ex. "KILL" ends everything that the program started.
func (c *Client) Signal(ctx context.Context, id, ex, name string) error {
	return c.do(ctx, http.MethodPost, execPath(id, ex)+"/signal", rest.SignalRequest{Signal: name}, nil)
}

// OutputStream is one of a program's two output streams.
type OutputStream string

// The output streams.
const (
	Stdout OutputStream = "stdout"
	Stderr OutputStream = "stderr"
)

// Output returns what the program ex writes to a stream, from the position offset
// on: what there is now, or with follow all there will be up to the stream's end,
// where Read returns [io.EOF]. Any other error means that the answer broke off, and
// that there is more; [Client.CopyOutput] goes on then. When the
// byte at offset is no longer kept, the error is an [*Error] with FirstOffset set.
// The caller closes the output.
func (c *Client) Output(ctx context.Context, id, ex string, from OutputStream, offset int64, follow bool) (*Output, error) {
	//nolint:bodyclose // the output closes it
	resp, err := c.send(ctx, http.MethodGet, fmt.Sprintf("%s/output?stream=%s&offset=%d&follow=%t",
		execPath(id, ex), url.QueryEscape(string(from)), offset, follow), nil)
	if err != nil {
		return nil, err
	}
	return &Output{body: resp.Body, ctx: ctx, offset: offset}, nil
}

// Output is output of a program on its way to the client. One goroutine reads it.
type Output struct {
	body   io.ReadCloser
	ctx    context.Context
	offset int64
}

// Offset is the position behind the last byte that was read, at which another
// Output goes on.
func (o *Output) Offset() int64 { return o.offset }

// Read reads output.
func (o *Output) Read(p []byte) (int, error) {
	n, err := o.body.Read(p)
	o.offset += int64(n)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case o.ctx.Err() != nil:
		return n, context.Cause(o.ctx)
	}
	return n, fmt.Errorf("output broke off at byte %d: %w", o.offset, err)
}

// Close ends the reading.
func (o *Output) Close() error { return o.body.Close() }

// Resume is how [Client.CopyOutput] meets what goes wrong on the way.
type Resume struct {
	// Patience is for how long it tries to reach a daemon that does not answer;
	// zero means not at all.
	Patience time.Duration
	// Gone, if it is set, is told that bytes are no longer kept, and the copy goes
	// on behind them. Else it ends with an error.
	Gone func(from, to int64)
}

// retryPause is how long a copy waits before it asks again.
const retryPause = 100 * time.Millisecond

// CopyOutput follows a stream of the program ex from offset to its end and writes
// it to w. It goes on by itself, without a byte missing or twice, when the
// connection breaks or the daemon is restarted, as r says. It returns the position
// that it has come to.
func (c *Client) CopyOutput(ctx context.Context, w io.Writer, id, ex string, from OutputStream, offset int64, r Resume) (int64, error) {
	lastAnswer := time.Now()
	for {
		begun, first := time.Now(), offset
		out, err := c.Output(ctx, id, ex, from, offset, true)
		if err == nil {
			offset, err = copyOut(w, out)
			if err == nil {
				return offset, nil
			}
			if write, ok := errors.AsType[*writeError](err); ok {
				return offset, write.err
			}
			if offset > first || time.Since(begun) > retryPause { // it was of use
				lastAnswer = time.Now()
			}
		}
		if gone, ok := errors.AsType[*Error](err); ok && gone.Code == "output_gone" && gone.FirstOffset > offset && r.Gone != nil {
			r.Gone(offset, gone.FirstOffset)
			offset = gone.FirstOffset
			continue
		}
		if ctx.Err() != nil || !passing(err) || time.Since(lastAnswer) > r.Patience {
			return offset, err
		}
		select {
		case <-ctx.Done():
			return offset, context.Cause(ctx)
		case <-time.After(retryPause):
		}
	}
}

// passing tells whether what went wrong may be over when it is tried again: no
// answer, half of one, or one of a daemon that begins or ends.
func passing(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status == http.StatusServiceUnavailable
	}
	return true
}

// copyOut copies out to w and closes it. It returns the position that it has
// written up to.
func copyOut(w io.Writer, out *Output) (int64, error) {
	defer func() { _ = out.Close() }()
	at := out.Offset()
	buf := make([]byte, 32<<10)
	for {
		n, err := out.Read(buf)
		if n > 0 {
			written, werr := w.Write(buf[:n])
			at += int64(written)
			if werr != nil {
				return at, &writeError{werr}
			}
		}
		if errors.Is(err, io.EOF) {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}

// writeError is an error of where output goes, not of where it comes from.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

func execPath(id, ex string) string { return sandboxPath(id) + "/execs/" + url.PathEscape(ex) }
