package httpapi

import (
	"io"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// bytesType is the media type of what a program reads and writes.
const bytesType = "application/octet-stream"

func (a *API) execRoutes() []route {
	const execs = "/sandboxes/{id}/execs"
	return []route{
		{
			method: "POST", path: execs, id: "start-exec", summary: "Start a program in a sandbox",
			doc: "Returns when the program runs, or could not be started, which its state tells. It goes on whatever becomes of its client, until its time limit.",
			in:  rest.StartRequest{}, out: rest.StartResponse{}, status: http.StatusCreated, once: true,
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeNotFound, sandbox.CodeTooLarge, sandbox.CodeQuota, sandbox.CodeLost},
			serve:  a.startExec,
		},
		{
			method: "GET", path: execs, id: "list-execs", summary: "List the programs of a sandbox",
			doc: "Those that run, and those that ended and that the guest remembers: 64 of them for an hour.",
			out: rest.ExecList{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeNotFound, sandbox.CodeLost},
			serve:  a.listExecs,
		},
		{
			method: "GET", path: execs + "/{ex}", id: "get-exec", summary: "Describe a program",
			out: rest.Exec{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeNotFound, sandbox.CodeLost},
			serve:  a.getExec,
		},
		{
			method: "GET", path: execs + "/{ex}/output", id: "exec-output", summary: "Read what a program writes",
			doc: "The bytes of one stream from offset on: what there is now, or with follow what there will be up to the stream's end. The header " + rest.OffsetHeader +
				" has the position of the first. Of each stream the youngest MiB is kept, or less if the guest has little memory. When bytes that were asked for are gone, the answer is 410 and says from where on there are some; when that happens to a client in the middle, because it is too slow, the answer is broken off, and so it is when the sandbox ends. A client that was broken off asks again, with the position behind the last byte that it has.",
			media: bytesType, status: http.StatusOK,
			query: []*huma.Param{
				{Name: "stream", Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"stdout", "stderr"}}, Description: "Which stream; stdout if it is absent."},
				{Name: "offset", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: new(float64)}, Description: "The position of the first byte; 0 if it is absent."},
				{Name: "follow", Schema: flagSchema(), Description: "Go on with what the program will write."},
			},
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeNotFound, sandbox.CodeOutputGone, sandbox.CodeLost},
			serve:  a.execOutput,
		},
		{
			method: "POST", path: execs + "/{ex}/stdin", id: "exec-stdin", summary: "Give a program more input",
			doc:    "The body is taken whole, or on an error not at all. There is room for 1 MiB that the program has not read; beyond that the answer is 429.",
			inType: bytesType, inOptional: true, status: http.StatusNoContent,
			query: []*huma.Param{
				{Name: "end", Schema: flagSchema(), Description: "End the input behind the body."},
			},
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeNotFound, sandbox.CodeTooLarge, sandbox.CodeQuota, sandbox.CodeEnded, sandbox.CodeLost},
			serve:  a.execStdin,
		},
		{
			method: "POST", path: execs + "/{ex}/signal", id: "signal-exec", summary: "Send a signal to a program",
			in: rest.SignalRequest{}, status: http.StatusNoContent,
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeNotFound, sandbox.CodeTooLarge, sandbox.CodeEnded, sandbox.CodeLost},
			serve:  a.signalExec,
		},
	}
}

// named returns the sandbox and the program that r is about.
func named(r *http.Request) (sandbox.ID, sandbox.ExecID, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return "", "", err
	}
	ex, err := sandbox.ParseExecID(r.PathValue("ex"))
	return id, ex, err
}

func (a *API) startExec(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	body, err := a.readBody(w, r, rest.MaxExecBody)
	if err != nil {
		return nil, err
	}
	req, err := decodeStart(body)
	if err != nil {
		return nil, err
	}
	if req.Once, err = once(r, body); err != nil {
		return nil, err
	}
	ex, err := a.engine.StartExec(r.Context(), id, req)
	if err != nil {
		return nil, err
	}
	return rest.StartResponse{ExecID: string(ex)}, nil
}

func (a *API) listExecs(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	all, err := a.engine.Execs(r.Context(), id)
	if err != nil {
		return nil, err
	}
	out := rest.ExecList{Execs: make([]rest.Exec, len(all))}
	for i, ex := range all {
		out.Execs[i] = describeExec(ex)
	}
	return out, nil
}

func (a *API) getExec(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, ex, err := named(r)
	if err != nil {
		return nil, err
	}
	got, err := a.engine.GetExec(r.Context(), id, ex)
	if err != nil {
		return nil, err
	}
	return describeExec(got), nil
}

func (a *API) execOutput(w http.ResponseWriter, r *http.Request) (any, error) {
	id, ex, err := named(r)
	if err != nil {
		return nil, err
	}
	req, err := outputRequest(r)
	if err != nil {
		return nil, err
	}
	out, err := a.engine.ExecOutput(r.Context(), id, ex, req)
	if err != nil {
		return nil, err
	}
	w.Header().Set(rest.OffsetHeader, strconv.FormatInt(req.Offset, 10))
	return stream{bytesType, func(to *answer) error {
		defer func() { _ = out.Close() }()
		err := pass(to, out)
		if err != nil {
			a.log.Debug("output was broken off", "sandbox_id", id, "exec_id", ex, "err", err)
			panic(http.ErrAbortHandler) // half of it must not look like all
		}
		return nil
	}}, nil
}

// pass sends each piece of output as it comes.
func pass(to *answer, from io.Reader) error {
	if err := to.conn.Flush(); err != nil {
		return err
	}
	buf := make([]byte, writePiece)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
			if err := to.conn.Flush(); err != nil {
				return err
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// outputRequest reads the query of a request for output.
func outputRequest(r *http.Request) (sandbox.OutputRequest, error) {
	var req sandbox.OutputRequest
	switch name := queryValue(r, "stream", "stdout"); name {
	case "stdout":
	case "stderr":
		req.Stderr = true
	default:
		return req, sandbox.Invalid("stream is %q; it can be stdout or stderr", name)
	}
	offset := queryValue(r, "offset", "0")
	var err error
	if req.Offset, err = strconv.ParseInt(offset, 10, 64); err != nil || req.Offset < 0 {
		return req, sandbox.Invalid("offset is %q; it must be a number from 0 on", offset)
	}
	req.Follow, err = queryFlag(r, "follow")
	return req, err
}

// flagSchema is what [queryFlag] takes.
func flagSchema() *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Enum: []any{"true", "false", "1", "0"}}
}

// queryFlag reads a yes or no of a query; what is absent is no.
func queryFlag(r *http.Request, name string) (bool, error) {
	switch value := queryValue(r, name, "0"); value {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	default:
		return false, sandbox.Invalid("%s is %q; it can be true or false", name, value)
	}
}

// queryValue is what a query says of name, or def if it says nothing.
func queryValue(r *http.Request, name, def string) string {
	query := r.URL.Query()
	if !query.Has(name) {
		return def
	}
	return query.Get(name)
}

func (a *API) execStdin(w http.ResponseWriter, r *http.Request) (any, error) {
	id, ex, err := named(r)
	if err != nil {
		return nil, err
	}
	end, err := queryFlag(r, "end")
	if err != nil {
		return nil, err
	}
	data, err := a.readBytes(w, r, rest.MaxStdinBody)
	if err != nil {
		return nil, err
	}
	return nil, a.engine.FeedExec(r.Context(), id, ex, data, end)
}

func (a *API) signalExec(w http.ResponseWriter, r *http.Request) (any, error) {
	id, ex, err := named(r)
	if err != nil {
		return nil, err
	}
	body, err := a.readBody(w, r, rest.MaxSmallBody)
	if err != nil {
		return nil, err
	}
	var req rest.SignalRequest
	if err := decode(body, signalShape, &req); err != nil {
		return nil, err
	}
	signal, err := sandbox.ParseSignal(req.Signal)
	if err != nil {
		return nil, err
	}
	return nil, a.engine.SignalExec(r.Context(), id, ex, signal)
}

// decodeStart turns the body of a start request into the program to run.
func decodeStart(body []byte) (sandbox.ExecRequest, error) {
	var start rest.StartRequest
	if err := decode(body, startShape, &start); err != nil {
		return sandbox.ExecRequest{}, err
	}
	req, err := program(start.ExecRequest)
	req.StdinOpen = start.StdinOpen
	return req, err
}

// describeExec returns a program in the API's words.
func describeExec(ex sandbox.Exec) rest.Exec {
	out := rest.Exec{
		ExecID: string(ex.ID), State: "running", StartedAt: ex.StartedAt.UTC(),
		Stdout:     rest.Span{FirstOffset: ex.Stdout.First, EndOffset: ex.Stdout.End},
		Stderr:     rest.Span{FirstOffset: ex.Stderr.First, EndOffset: ex.Stderr.End},
		StdinBytes: ex.StdinBytes, StdinOpen: ex.StdinOpen, EgressDenied: describeDenials(ex.EgressDenied),
	}
	if res := ex.Result; res != nil {
		ms, us := res.Duration.Milliseconds(), res.Duration.Microseconds()
		out.State, out.ExitCode, out.DurationMS, out.DurationUS = "exited", &res.ExitCode, &ms, &us
		out.Start, out.LimitsHit, out.Error = rest.StartName(res.Warm), res.Hit.Names(), res.Err
	}
	return out
}
