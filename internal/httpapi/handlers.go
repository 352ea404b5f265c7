package httpapi

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry/trace"
	"github.com/emberd/emberd/internal/x/cleanup"
)

// API is emberd's HTTP API. Get one from [New], and servers of it from
// [API.Server].
type API struct {
	engine    Engine
	templates Templates
	telemetry Telemetry
	tracer    *trace.Exporter
	stats     func() rest.Stats
	info      func() rest.Info
	limits    sandbox.Policy
	ready     func() error
	log       *slog.Logger
	mux       *http.ServeMux
	open      map[string]bool // patterns that ask for no key
	panics    atomic.Int64
	rates     *rates

	bodyGrace, writeGrace time.Duration
}

func (a *API) create(w http.ResponseWriter, r *http.Request) (any, error) {
	body, err := a.readBody(w, r, rest.MaxSmallBody)
	if err != nil {
		return nil, err
	}
	spec, err := decodeCreate(body)
	if err != nil {
		return nil, err
	}
	if spec.Once, err = once(r, body); err != nil {
		return nil, err
	}
	sb, err := a.engine.Create(r.Context(), spec)
	if err != nil {
		return nil, err
	}
	if r.Context().Err() != nil && spec.Once.IsZero() {
		return nil, a.discard(r.Context(), sb.ID)
	}
	return rest.CreateResponse{ID: string(sb.ID)}, nil
}

// discard deletes a sandbox whose client went away before it could learn the
// id, and returns the error of the client's request.
func (a *API) discard(ctx context.Context, id sandbox.ID) error {
	clean, cancel := cleanup.Context(ctx)
	defer cancel()
	if err := a.engine.Delete(clean, id); err != nil {
		a.log.Error("sandbox of a canceled create was not deleted", "sandbox_id", id, "err", err)
	}
	return context.Cause(ctx)
}

func (a *API) list(http.ResponseWriter, *http.Request) (any, error) {
	all := a.engine.List()
	out := rest.SandboxList{Sandboxes: make([]rest.Sandbox, len(all))}
	for i, sb := range all {
		out.Sandboxes[i] = describe(sb)
	}
	return out, nil
}

func (a *API) get(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	sb, err := a.engine.Get(id)
	if err != nil {
		return nil, err
	}
	return describe(sb), nil
}

func (a *API) delete(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return nil, a.engine.Delete(r.Context(), id)
}

func (a *API) exec(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := sandbox.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	body, err := a.readBody(w, r, rest.MaxExecBody)
	if err != nil {
		return nil, err
	}
	req, err := decodeExec(body)
	if err != nil {
		return nil, err
	}
	if req.Once, err = once(r, body); err != nil {
		return nil, err
	}
	res, err := a.engine.Exec(r.Context(), id, req)
	if err != nil {
		return nil, err
	}
	return execAnswer{res}, nil
}

func (a *API) readiness(http.ResponseWriter, *http.Request) (any, error) {
	err := a.ready()
	if err == nil {
		return rest.Status{Status: "ready"}, nil
	}
	code, msg := sandbox.Public(err)
	if code == sandbox.CodeInternal {
		msg = "emberd is not ready"
	}
	return nil, &httpError{http.StatusServiceUnavailable, &sandbox.Error{Code: code, Message: msg, Cause: err}}
}

// The shapes of what requests carry.
var (
	createShape   = shapeOf[rest.CreateRequest]()
	execShape     = shapeOf[rest.ExecRequest]()
	startShape    = shapeOf[rest.StartRequest]()
	signalShape   = shapeOf[rest.SignalRequest]()
	templateShape = shapeOf[rest.TemplateRequest]()
	egressShape   = shapeOf[rest.EgressRequest]()
)

// decodeCreate turns the body of a create request into a spec.
func decodeCreate(body []byte) (sandbox.Spec, error) {
	var req rest.CreateRequest
	if len(body) > 0 {
		if err := decode(body, createShape, &req); err != nil {
			return sandbox.Spec{}, err
		}
	}
	if req.LanguagePack == "" {
		req.LanguagePack = sandbox.DefaultPack
	}
	l, err := limits(req.Limits)
	if err != nil {
		return sandbox.Spec{}, err
	}
	path, err := sandbox.ParseBootPath(req.BootPath)
	if err != nil {
		return sandbox.Spec{}, err
	}
	spec := sandbox.Spec{Pack: req.LanguagePack, Limits: l, BootPath: path}
	if req.Egress != nil {
		policy, err := egressOf(*req.Egress)
		if err != nil {
			return sandbox.Spec{}, err
		}
		spec.Egress = &policy
	}
	return spec, nil
}

// maxTimeoutMS is the longest time limit that a [time.Duration] can hold.
const maxTimeoutMS = math.MaxInt64 / int64(time.Millisecond)

// decodeExec turns the body of an exec request into the program to run.
func decodeExec(body []byte) (sandbox.ExecRequest, error) {
	var req rest.ExecRequest
	if err := decode(body, execShape, &req); err != nil {
		return sandbox.ExecRequest{}, err
	}
	return program(req)
}

// program returns the program of a request in emberd's words.
func program(req rest.ExecRequest) (sandbox.ExecRequest, error) {
	switch {
	case strings.Contains(req.Code, "\x00"):
		return sandbox.ExecRequest{}, sandbox.Invalid("code must not contain NUL")
	case req.TimeoutMS < 0:
		return sandbox.ExecRequest{}, sandbox.Invalid("timeout_ms must not be negative")
	case req.TimeoutMS > maxTimeoutMS:
		return sandbox.ExecRequest{}, sandbox.Invalid("timeout_ms is too large")
	case req.Stdin != "" && len(req.StdinBase64) > 0:
		return sandbox.ExecRequest{}, sandbox.Invalid("give stdin or stdin_base64, not both")
	}
	stdin := req.StdinBase64
	if req.Stdin != "" {
		stdin = []byte(req.Stdin)
	}
	return sandbox.ExecRequest{
		Code:    req.Code,
		Stdin:   stdin,
		Timeout: time.Duration(req.TimeoutMS) * time.Millisecond,
	}, nil
}

// describe returns sb in the API's words.
func describe(sb sandbox.Sandbox) rest.Sandbox {
	out := rest.Sandbox{
		ID:           string(sb.ID),
		LanguagePack: sb.Pack,
		State:        string(sb.State),
		GuestVCPUs:   sb.Limits.VCPUs,
		GuestRAMMiB:  sb.Limits.MemoryMiB,
		BootPath:     string(sb.BootPath),
		CreatedAt:    sb.CreatedAt.UTC(),

		Limits:        describeLimits(sb.Limits),
		ExpiresAt:     sb.ExpiresAt.UTC(),
		IdleExpiresAt: sb.IdleExpiresAt.UTC(),
	}
	if sb.Egress != nil {
		policy := describeEgress(*sb.Egress)
		out.Egress = &policy
	}
	return out
}
