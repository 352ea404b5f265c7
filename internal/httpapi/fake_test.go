package httpapi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry"
	"github.com/emberd/emberd/internal/testenv"
)

const knownID = "sb_a1b2c3d4e5f6"

// fakeEngine knows one sandbox, knownID, and answers what it is told to. It
// keeps what it was asked for.
type fakeEngine struct {
	err    error                                  // of every call
	result sandbox.ExecResult                     // of Exec
	onCall func(ctx context.Context, name string) // before each call
	output io.ReadCloser                          // of ExecOutput
	egress *sandbox.Egress                        // of the sandbox
	denied []sandbox.EgressDenial                 // of EgressDenials
	mu     sync.Mutex
	spec   sandbox.Spec
	exec   sandbox.ExecRequest
	calls  []string
}

func (e *fakeEngine) called(ctx context.Context, name string) {
	if e.onCall != nil {
		e.onCall(ctx, name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, name)
}

var known = sandbox.Sandbox{
	ID: knownID, Pack: "python", State: sandbox.Running,
	Limits: sandbox.Limits{
		Size: sandbox.DefaultSize, DiskMiB: 128, PIDs: 512, Lifetime: time.Hour,
		IdleTimeout: 30 * time.Minute, ExecTimeout: time.Minute, Execs: 16, OutputBytes: 1 << 20,
	},
	BootPath: sandbox.ColdBoot, CreatedAt: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC),
	ExpiresAt:     time.Date(2025, 1, 2, 4, 4, 5, 0, time.UTC),
	IdleExpiresAt: time.Date(2025, 1, 2, 3, 34, 5, 0, time.UTC),
}

func (e *fakeEngine) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	e.called(ctx, "create")
	e.spec = spec
	if spec.Pack == "ruby" {
		return sandbox.Sandbox{}, sandbox.UnknownPack(spec.Pack)
	}
	return known, e.err
}

func (e *fakeEngine) Exec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecResult, error) {
	e.called(ctx, "exec")
	e.exec = req
	if id != knownID {
		return sandbox.ExecResult{}, sandbox.ErrNotFound
	}
	res := e.result
	res.ID = knownExec
	return res, e.err
}

func (e *fakeEngine) Delete(ctx context.Context, id sandbox.ID) error {
	e.called(ctx, "delete")
	if id != knownID {
		return sandbox.ErrNotFound
	}
	return e.err
}

func (e *fakeEngine) Get(id sandbox.ID) (sandbox.Sandbox, error) {
	if id != knownID {
		return sandbox.Sandbox{}, sandbox.ErrNotFound
	}
	sb := known
	sb.Egress = e.egress
	return sb, e.err
}

func (e *fakeEngine) SetEgress(ctx context.Context, id sandbox.ID, asked sandbox.Egress) (sandbox.Egress, error) {
	e.called(ctx, "set-egress")
	if id != knownID {
		return sandbox.Egress{}, sandbox.ErrNotFound
	}
	e.egress = &asked
	return asked, e.err
}

func (e *fakeEngine) Egress(id sandbox.ID) (sandbox.Egress, error) {
	if id != knownID {
		return sandbox.Egress{}, sandbox.ErrNotFound
	}
	if e.egress == nil {
		return sandbox.Egress{}, sandbox.ErrNoEgress
	}
	return *e.egress, e.err
}

func (e *fakeEngine) EgressDenials(id sandbox.ID) ([]sandbox.EgressDenial, error) {
	_, err := e.Egress(id)
	return e.denied, err
}

// knownJail has a word in every field, so that one that is lost is noticed.
var knownJail = sandbox.Jail{
	UID: 5000, GID: 5001, Root: "/jail/root",
	Files:      []sandbox.JailFile{{Path: "/rootfs", Kind: "file", Mode: "0444", UID: 1, GID: 2, Source: "/packs/shell"}},
	Namespaces: []string{"net"}, Cgroup: "/emberd/jail", CgroupLimits: map[string]string{"pids.max": "33"},
	Missing: []string{"io.max: no disk"}, Rlimits: map[string]uint64{"core": 0}, Umask: "0077",
	BoundingSet: []string{"chown"}, ConsoleBytes: 65536, Command: []string{"jailer", "--id"}, PID: 4711,
}

func (e *fakeEngine) Inspect(id sandbox.ID) (sandbox.Sandbox, sandbox.Jail, error) {
	sb, err := e.Get(id)
	return sb, knownJail, err
}

var knownStats = rest.Stats{
	Sandboxes: []rest.Usage{{
		ID: knownID, LanguagePack: "python", State: "running", BootPath: "pool", CreatedAt: known.CreatedAt, ExpiresAt: known.ExpiresAt,
		Execs: 1, MemoryMiB: 256, PID: 4711, CPUUS: 1500, OwnBytes: 4096, SharedBytes: 8192,
	}},
	Total: rest.Total{VMMs: 2, OwnBytes: 5000, SharedBytes: 9000, PromisedMiB: 320, CapacityMiB: 7000},
}

func (e *fakeEngine) List() []sandbox.Sandbox {
	if e.err != nil {
		return nil
	}
	return []sandbox.Sandbox{known}
}

// newAPI returns the API for a listener that asks for nothing.
func newAPI(e *fakeEngine) http.Handler {
	return newLoggedAPI(e, nil, &testenv.Log{})
}

func newLoggedAPI(e *fakeEngine, ready error, log *testenv.Log) http.Handler {
	return &gate{unguarded(e, ready, log), Access{}}
}

func unguarded(e *fakeEngine, ready error, log *testenv.Log) *API {
	return New(Config{
		Engine: e, Telemetry: telemetry.New(prometheus.NewRegistry(), "1.2.3", nil), Stats: func() rest.Stats { return knownStats },
		Info: func() rest.Info {
			return rest.Info{
				GuestRAMMiB: 256, GuestVCPUs: 1, BootPath: "cold-boot", Packs: []string{"python", "shell"},
				WorkDir: "/data", KVM: "emulated", Egress: true,
				Pool: []rest.PoolStock{{
					Pack: "python", Size: rest.Size{VCPUs: 1, MemoryMiB: 256},
					Ready: 1, Target: 2, Min: 2, Max: 4, Hits: 5, Misses: 6, Refills: 7, Failures: 8,
				}},
				Versions: rest.Versions{Emberd: "1.2.3", Firecracker: "1.12.1", HostKernel: "6.1.0"},
			}
		},
		Limits: sandbox.DefaultPolicy(),
		Ready:  func() error { return ready },
		Log:    slog.New(slog.NewJSONHandler(log, nil)),
	})
}

// request sends one request with a body as curl -d would.
func request(t *testing.T, h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "localhost:7777"
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

const knownExec = "ex_0123456789ab"

func (e *fakeEngine) StartExec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecID, error) {
	_, err := e.Exec(ctx, id, req)
	return knownExec, err
}

var runningExec = sandbox.Exec{
	ID: knownExec, StartedAt: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC),
	Stdout: sandbox.Span{First: 10, End: 20}, Stderr: sandbox.Span{End: 5}, StdinBytes: 7, StdinOpen: true,
}

func (e *fakeEngine) Execs(ctx context.Context, id sandbox.ID) ([]sandbox.Exec, error) {
	e.called(ctx, "execs")
	if id != knownID {
		return nil, sandbox.ErrNotFound
	}
	ended := runningExec
	ended.Result = &sandbox.ExecResult{ExitCode: 3, Warm: true, Duration: 1500 * time.Microsecond, Hit: sandbox.LimitsHit{PIDs: true}}
	return []sandbox.Exec{runningExec, ended}, e.err
}

func (e *fakeEngine) GetExec(ctx context.Context, id sandbox.ID, ex sandbox.ExecID) (sandbox.Exec, error) {
	e.called(ctx, "get-exec")
	if id != knownID || ex != knownExec {
		return sandbox.Exec{}, sandbox.ErrExecNotFound
	}
	return runningExec, e.err
}

func (e *fakeEngine) ExecOutput(ctx context.Context, _ sandbox.ID, _ sandbox.ExecID, req sandbox.OutputRequest) (io.ReadCloser, error) {
	e.called(ctx, fmt.Sprintf("output %+v", req))
	return e.output, e.err
}

func (e *fakeEngine) FeedExec(ctx context.Context, _ sandbox.ID, _ sandbox.ExecID, data []byte, end bool) error {
	e.called(ctx, fmt.Sprintf("feed %q %v", data, end))
	return e.err
}

func (e *fakeEngine) SignalExec(ctx context.Context, _ sandbox.ID, _ sandbox.ExecID, signal sandbox.Signal) error {
	e.called(ctx, fmt.Sprintf("signal %d", signal))
	return e.err
}
