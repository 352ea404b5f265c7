// Package httpapi puts emberd's HTTP API in front of an engine.
//
// The one idea is a table: every route is a value that says what it takes, what
// it answers, which errors it can end in and what it does. The handler and the
// published OpenAPI document are both made from it, so they cannot disagree.
//
// Each answer is JSON, errors included, and an error tells the client no more
// than [sandbox.Public] allows; its cause goes to the log. Who may come in is a
// value for each listener ([Access]), and is decided before anybody looks at
// what is asked for. A client that is slow, or sends too much, costs a bounded
// amount of memory for a bounded time. Between requests the package keeps nothing
// but how many each API key may send; what sandboxes there are is for the engine
// to know.
package httpapi

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry/trace"
)

// Engine is what the API needs of emberd. Its errors are [sandbox.Error]s where
// the client is to be told more than that something went wrong.
type Engine interface {
	// Create returns when the sandbox takes programs. When ctx ends first it
	// leaves nothing behind.
	Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error)
	// Exec returns when the program has ended. When ctx ends first, the program
	// goes on.
	Exec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecResult, error)
	// StartExec returns when the program runs, or could not be started.
	StartExec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecID, error)
	Execs(ctx context.Context, id sandbox.ID) ([]sandbox.Exec, error)
	GetExec(ctx context.Context, id sandbox.ID, ex sandbox.ExecID) (sandbox.Exec, error)
	// ExecOutput returns output that the caller closes. It ends with an error if
	// it breaks off.
	ExecOutput(ctx context.Context, id sandbox.ID, ex sandbox.ExecID, req sandbox.OutputRequest) (io.ReadCloser, error)
	FeedExec(ctx context.Context, id sandbox.ID, ex sandbox.ExecID, data []byte, end bool) error
	SignalExec(ctx context.Context, id sandbox.ID, ex sandbox.ExecID, signal sandbox.Signal) error
	// SetEgress returns the policy that is in force from then on.
	SetEgress(ctx context.Context, id sandbox.ID, asked sandbox.Egress) (sandbox.Egress, error)
	Egress(id sandbox.ID) (sandbox.Egress, error)
	// EgressDenials returns what was refused so far.
	EgressDenials(id sandbox.ID) ([]sandbox.EgressDenial, error)
	Delete(ctx context.Context, id sandbox.ID) error
	Get(id sandbox.ID) (sandbox.Sandbox, error)
	// Inspect returns a sandbox and what confines it.
	Inspect(id sandbox.ID) (sandbox.Sandbox, sandbox.Jail, error)
	// List returns the sandboxes, oldest first.
	List() []sandbox.Sandbox
}

// Config is what [New] needs; every field but Templates and Tracer is required.
type Config struct {
	Engine Engine
	// Templates is nil where there are none.
	Templates Templates
	Telemetry Telemetry
	// Tracer is told of the requests that change something; nil is nobody.
	Tracer *trace.Exporter
	// Stats returns what sandboxes use.
	Stats func() rest.Stats
	// Info describes the daemon.
	Info func() rest.Info
	// Limits are what each sandbox is granted.
	Limits sandbox.Policy
	// Rate is how many requests a second may come with one API key; 0 is any
	// number.
	Rate int
	// Ready returns nil when sandboxes can be created, else why not.
	Ready func() error
	Log   *slog.Logger
}

// New returns the API. It may be used by any number of goroutines.
func New(cfg Config) *API {
	a := &API{
		engine: cfg.Engine, templates: cfg.Templates, telemetry: cfg.Telemetry, tracer: cfg.Tracer, stats: cfg.Stats,
		limits: cfg.Limits, info: cfg.Info, ready: cfg.Ready, log: cfg.Log,
		mux: http.NewServeMux(), open: make(map[string]bool),
		rates:     newRates(cfg.Rate),
		bodyGrace: bodyGrace, writeGrace: writeGrace,
	}
	routes := slices.Concat(a.routes(), a.execRoutes(), a.egressRoutes(), a.templateRoutes(), a.operatorRoutes())
	for _, rt := range routes {
		pattern := rt.method + " " + rt.path
		a.mux.Handle(pattern, a.handler(rt))
		a.open[pattern] = rt.open
	}
	document := openAPI(routes, grantsOf(cfg.Limits, cfg.Info()))
	a.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, r *http.Request) {
		a.send(w, r, http.StatusOK, document)
	})
	return a
}

// route is one operation of the API.
type route struct {
	method, path string
	id           string // OpenAPI's operationId
	open         bool   // to clients without a key, too
	summary, doc string

	// in is a zero value of the request's JSON body, nil if it has none. The
	// body may be left out when inOptional is set.
	in         any
	inOptional bool
	// inType is the media type of a body that is no JSON, "" if there is none.
	inType string
	// once says that a request with a key is carried out once.
	once bool
	// query are the parameters that the URL may have.
	query []*huma.Param
	// out is a zero value of the answer's JSON body, nil if it has none, and media
	// the type of one that is no JSON, "" if there is no such answer.
	out    any
	media  string
	status int            // of a success
	errors []sandbox.Code // besides those that any route can end in

	serve func(w http.ResponseWriter, r *http.Request) (out any, err error)
}

func (a *API) routes() []route {
	return []route{
		{
			method: "POST", path: "/sandboxes", id: "create-sandbox", summary: "Create a sandbox",
			doc: "Boots a microVM and returns when it takes programs. A client that goes away before that leaves no sandbox behind.",
			in:  rest.CreateRequest{}, inOptional: true, out: rest.CreateResponse{}, status: http.StatusCreated, once: true,
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeUnknownPack, sandbox.CodeNoEgress, sandbox.CodeTooLarge, sandbox.CodeQuota, sandbox.CodeCapacity, sandbox.CodeBoot, sandbox.CodeEgress, sandbox.CodeDiskFull, sandbox.CodeClosing},
			serve:  a.create,
		},
		{
			method: "GET", path: "/sandboxes", id: "list-sandboxes", summary: "List the sandboxes",
			out: rest.SandboxList{}, status: http.StatusOK,
			serve: a.list,
		},
		{
			method: "GET", path: "/sandboxes/{id}", id: "get-sandbox", summary: "Describe a sandbox",
			out: rest.Sandbox{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeNotFound},
			serve:  a.get,
		},
		{
			method: "GET", path: "/sandboxes/{id}/inspect", id: "inspect-sandbox", summary: "Show what confines a sandbox",
			doc: "Tells the operator how the VMM of a sandbox is jailed on its host, paths of the host included.",
			out: rest.Inspection{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeNotFound},
			serve:  a.inspect,
		},
		{
			method: "DELETE", path: "/sandboxes/{id}", id: "delete-sandbox", summary: "Delete a sandbox",
			doc:    "Ends the microVM and everything that runs in it. The answer comes when the sandbox is out of reach; its microVM is gone soon after, and takes up room until then. Of several requests one is answered with 204. The id is never used again.",
			status: http.StatusNoContent,
			errors: []sandbox.Code{sandbox.CodeNotFound},
			serve:  a.delete,
		},
		{
			method: "POST", path: "/sandboxes/{id}/exec", id: "exec", summary: "Run a program in a sandbox",
			doc: "Returns when the program has ended. A program that exits with an error is a success of this request. The program of a client that goes away goes on, until its time limit, and is found among the sandbox's execs.",
			in:  rest.ExecRequest{}, out: rest.ExecResult{}, status: http.StatusOK, once: true,
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeNotFound, sandbox.CodeTooLarge, sandbox.CodeQuota, sandbox.CodeLost, sandbox.CodeOutputGone, sandbox.CodeClosing},
			serve:  a.exec,
		},
		{
			method: "GET", path: "/info", id: "info", summary: "Describe the daemon",
			out: rest.Info{}, status: http.StatusOK,
			serve: func(http.ResponseWriter, *http.Request) (any, error) { return a.info(), nil },
		},
		{
			method: "GET", path: "/pool", id: "pool", summary: "Show the microVMs that are kept ready",
			out: rest.Pool{}, status: http.StatusOK,
			serve: func(http.ResponseWriter, *http.Request) (any, error) { return rest.Pool{Pool: a.info().Pool}, nil },
		},
		{
			method: "GET", path: "/healthz", id: "health", open: true, summary: "Does the daemon answer?",
			out: rest.Status{}, status: http.StatusOK,
			serve: func(http.ResponseWriter, *http.Request) (any, error) { return rest.Status{Status: "ok"}, nil },
		},
		{
			method: "GET", path: "/readyz", id: "ready", summary: "Can the daemon create sandboxes?",
			out: rest.Status{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeStarting, sandbox.CodeClosing},
			serve:  a.readiness,
		},
	}
}
