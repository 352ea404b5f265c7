package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/api/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const id = "sb_a1b2c3d4e5f6"

// serve starts a daemon that answers with h, and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	c := New(srv.URL)
	t.Cleanup(func() { c.http.CloseIdleConnections(); srv.Close() })
	return c
}

// answer returns a handler that checks the request and gives one answer.
func answer(t *testing.T, wantRequest string, status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read request: %v", err)
		}
		if got := strings.TrimSpace(r.Method + " " + r.URL.EscapedPath() + " " + string(b)); got != wantRequest {
			t.Errorf("request %s\nwant    %s", got, wantRequest)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestExec(t *testing.T) {
	for _, tt := range []struct {
		name     string
		program  Program
		request  string
		response string
		want     Result
	}{
		{
			name: "text", program: Program{Code: "print('<ü>')", Stdin: []byte("in\n"), Timeout: 1500 * time.Millisecond},
			request:  `{"code":"print('<ü>')","stdin":"in\n","timeout_ms":1500}`,
			response: `{"stdout":"<ü>\n","stderr":"e","exit_code":3,"duration_ms":13,"duration_us":13021}`,
			want:     Result{Stdout: []byte("<ü>\n"), Stderr: []byte("e"), ExitCode: 3, Duration: 13021 * time.Microsecond},
		}, {
			name: "text that is longer than its bytes", program: Program{Code: "x", Stdin: []byte{0, 1}},
			request:  `{"code":"x","stdin_base64":"AAE="}`,
			response: `{"stdout":"","stderr":"","exit_code":0,"duration_ms":0,"duration_us":1}`,
			want:     Result{Stdout: []byte{}, Stderr: []byte{}, Duration: time.Microsecond},
		}, {
			name: "bytes", program: Program{Code: "x", Stdin: []byte{0, 0xff}},
			request:  `{"code":"x","stdin_base64":"AP8="}`,
			response: `{"stdout":"\ufffd","stderr":"","stdout_base64":"/w==","exit_code":0,"duration_ms":0,"duration_us":1}`,
			want:     Result{Stdout: []byte{0xff}, Stderr: []byte{}, Duration: time.Microsecond},
		}, {
			name: "standard output cut", program: Program{Code: "x"},
			request:  `{"code":"x"}`,
			response: `{"stdout":"a","stderr":"b","stdout_truncated":true,"exit_code":0,"duration_ms":0,"duration_us":1}`,
			want:     Result{Stdout: []byte("a"), Stderr: []byte("b"), StdoutTruncated: true, Duration: time.Microsecond},
		}, {
			name: "standard error cut", program: Program{Code: "x"},
			request:  `{"code":"x"}`,
			response: `{"stdout":"a","stderr":"b","stderr_truncated":true,"exit_code":3,"duration_ms":0,"duration_us":1}`,
			want:     Result{Stdout: []byte("a"), Stderr: []byte("b"), StderrTruncated: true, ExitCode: 3, Duration: time.Microsecond},
		}, {
			name: "a limit is never rounded to none", program: Program{Code: "x", Timeout: time.Nanosecond},
			request:  `{"code":"x","timeout_ms":1}`,
			response: `{"stdout":"","stderr":"","exit_code":-1,"duration_ms":1,"duration_us":1000,"error":"execution timed out"}`,
			want:     Result{Stdout: []byte{}, Stderr: []byte{}, ExitCode: -1, Duration: time.Millisecond, Err: TimedOut},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, answer(t, "POST /sandboxes/"+id+"/exec "+tt.request, 200, tt.response))
			got, err := c.Exec(t.Context(), id, tt.program)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Stdout, tt.want.Stdout) || !bytes.Equal(got.Stderr, tt.want.Stderr) ||
				got.StdoutTruncated != tt.want.StdoutTruncated || got.StderrTruncated != tt.want.StderrTruncated ||
				got.ExitCode != tt.want.ExitCode || got.Duration != tt.want.Duration || got.Err != tt.want.Err {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestRequests(t *testing.T) {
	const sandbox = `{"id":"` + id + `","language_pack":"shell","state":"running","created_at":"2025-01-02T03:04:05Z"}`
	for _, tt := range []struct {
		name, request string
		status        int
		response      string
		do            func(context.Context, *Client) (any, error)
		want          any
	}{
		{"create", `POST /sandboxes {"language_pack":"shell"}`, 201, `{"id":"` + id + `"}`,
			func(ctx context.Context, c *Client) (any, error) { return c.Create(ctx, "shell") }, id},
		{"create the default", `POST /sandboxes {}`, 201, `{"id":"` + id + `"}`,
			func(ctx context.Context, c *Client) (any, error) { return c.Create(ctx, "") }, id},
		{"create with limits", `POST /sandboxes {"vcpus":2,"memory_mib":512,"disk_mib":99,"pids":64,"timeout_s":60,"idle_timeout_s":1,"exec_timeout_s":2,"execs":3,"output_bytes":4}`,
			201, `{"id":"` + id + `"}`, func(ctx context.Context, c *Client) (any, error) {
				return c.Create(ctx, "", WithLimits(Limits{
					VCPUs: 2, MemoryMiB: 512, DiskMiB: 99, PIDs: 64, Lifetime: time.Minute, IdleTimeout: time.Millisecond,
					ExecTimeout: 1001 * time.Millisecond, Execs: 3, OutputBytes: 4,
				}))
			}, id},
		{"delete", `DELETE /sandboxes/` + id, 204, ``,
			func(ctx context.Context, c *Client) (any, error) { return nil, c.Delete(ctx, id) }, nil},
		{"an id is one segment", `DELETE /sandboxes/..%2Finfo`, 204, ``,
			func(ctx context.Context, c *Client) (any, error) { return nil, c.Delete(ctx, "../info") }, nil},
		{"get", `GET /sandboxes/` + id, 200, sandbox,
			func(ctx context.Context, c *Client) (any, error) {
				sb, err := c.Get(ctx, id)
				return sb.LanguagePack, err
			}, "shell"},
		{"list", `GET /sandboxes`, 200, `{"sandboxes":[` + sandbox + `]}`,
			func(ctx context.Context, c *Client) (any, error) {
				list, err := c.List(ctx)
				return len(list), err
			}, 1},
		{"info", `GET /info`, 200, `{"kvm":"emulated","field_of_a_later_version":1}`,
			func(ctx context.Context, c *Client) (any, error) {
				info, err := c.Info(ctx)
				return info.KVM, err
			}, "emulated"},
		{"healthy", `GET /healthz`, 200, `{"status":"ok"}`,
			func(ctx context.Context, c *Client) (any, error) { return nil, c.Healthy(ctx) }, nil},
		{"ready", `GET /readyz`, 200, `{"status":"ready"}`,
			func(ctx context.Context, c *Client) (any, error) { return nil, c.Ready(ctx) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.do(t.Context(), serve(t, answer(t, tt.request, tt.status, tt.response)))
			if err != nil || got != tt.want {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

// Whatever is answered, and whether or not it is wanted, the connection is used
// again: to make one takes longer than to hand over a sandbox.
func TestOneConnection(t *testing.T) {
	long := `{"sandboxes":[` + strings.TrimSuffix(strings.Repeat(`{"id":"sb_a1b2c3d4e5f6"},`, 1000), ",") + "]}\n"
	var connections atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":"sandbox not found","code":"not_found"}`)
		case r.URL.Path == "/healthz":
			_, _ = io.WriteString(w, `{"status":"ok"}`)
		default:
			_, _ = io.WriteString(w, long)
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c := New(srv.URL)
	defer c.http.CloseIdleConnections()
	const rounds = 20
	for range rounds {
		if err := c.Healthy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if all, err := c.List(t.Context()); err != nil || len(all) != 1000 {
			t.Fatalf("%d sandboxes, %v", len(all), err)
		}
		if err := c.Delete(t.Context(), "sb_a1b2c3d4e5f6"); err == nil {
			t.Fatal("it was deleted")
		}
	}
	// The transport gives one up that it is not done writing to 50 ms after the
	// answer has come, as on a busy host.
	if n := connections.Load(); n > rounds/4 {
		t.Errorf("%d connections were made", n)
	}
}

func TestErrors(t *testing.T) {
	c := serve(t, answer(t, "GET /readyz", 503, `{"error":"emberd is shutting down","code":"shutting_down"}`))
	err := c.Ready(t.Context())
	if e, ok := errors.AsType[*Error](err); !ok || *e != (Error{Status: 503, Code: "shutting_down", Message: "emberd is shutting down"}) {
		t.Errorf("got %#v", err)
	}
	c = serve(t, answer(t, "GET /readyz", 502, `<html>bad gateway</html>`))
	err = c.Ready(t.Context())
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 502 || e.Message != "emberd answered 502 Bad Gateway" {
		t.Errorf("got %#v", err)
	}
	c = serve(t, answer(t, "GET /sandboxes", 200, `{"sandboxes":[{"id":`))
	if list, err := c.List(t.Context()); err == nil {
		t.Errorf("half an answer is taken for %v", list)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, do := range []func(*Client) error{
		func(c *Client) error { return c.Healthy(t.Context()) },
		func(c *Client) error { _, err := c.Create(t.Context(), ""); return err },
	} {
		err := do(New(addr))
		if !errors.Is(err, ErrUnreachable) || err.Error() != "no emberd answers at "+addr {
			t.Errorf("got %v", err)
		}
	}
}

// daemon is one whose create answers only once its client has gone away.
type daemon struct {
	creating chan struct{}
	status   int // of the create's answer; 0: there is none
	mu       sync.Mutex
	deleted  []string
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		d.mu.Lock()
		d.deleted = append(d.deleted, r.URL.Path)
		d.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	close(d.creating)
	<-r.Context().Done()
	if d.status == 0 {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(d.status)
	_ = json.NewEncoder(w).Encode(rest.CreateResponse{ID: id})
}

// TestCreateCalledOff checks that a create that was canceled leaves nothing
// behind, whatever became of it in the daemon, and says why it was canceled.
func TestCreateCalledOff(t *testing.T) {
	cause := errors.New("the user thought again")
	for _, tt := range []struct {
		name   string
		status int
		want   []string
	}{
		{"made all the same", 201, []string{"/sandboxes/" + id}},
		{"not made", 499, nil},
		{"no answer", 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &daemon{creating: make(chan struct{}), status: tt.status}
			c := serve(t, d.ServeHTTP)
			ctx, cancel := context.WithCancelCause(t.Context())
			var caller sync.WaitGroup
			caller.Go(func() { <-d.creating; cancel(cause) })
			got, err := c.Create(ctx, "")
			caller.Wait()
			if got != "" || !errors.Is(err, cause) {
				t.Errorf("got %q, %v", got, err)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			if !slices.Equal(d.deleted, tt.want) {
				t.Errorf("deleted %v, want %v", d.deleted, tt.want)
			}
		})
	}
}

// TestCreateDoesNotWaitForEver checks that a daemon that hangs cannot keep a
// create that was called off.
func TestCreateDoesNotWaitForEver(t *testing.T) {
	creating, release := make(chan struct{}), make(chan struct{})
	c := serve(t, func(http.ResponseWriter, *http.Request) { close(creating); <-release })
	defer close(release)
	c.patience = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var caller sync.WaitGroup
	caller.Go(func() { <-creating; cancel() })
	if _, err := c.Create(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	caller.Wait()
}

// TestCreateBeforeConnecting checks that a context that is over makes no request.
func TestCreateBeforeConnecting(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was made") })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Create(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestSocketAndKey checks that requests take the way through a Unix socket, and
// carry the key that the client was given, and none else.
func TestSocketAndKey(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name string
		opts []Option
		want string
	}{
		{"with", []Option{WithAPIKey("emb_x")}, "Bearer emb_x"},
		{"without", nil, ""},
	} {
		path := filepath.Join(dir, tt.name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Authorization"); got != tt.want {
				t.Errorf("%s: Authorization %q, want %q", tt.name, got, tt.want)
			}
			if r.Host != "localhost" {
				t.Errorf("Host %q", r.Host)
			}
		}), ReadHeaderTimeout: time.Second}}
		srv.Start()
		c := New(UnixScheme+path, tt.opts...)
		if err := c.Healthy(t.Context()); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		c.http.CloseIdleConnections()
		srv.Close()
	}
	if err := New(UnixScheme + filepath.Join(dir, "nobody")).Healthy(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no socket: %v", err)
	}
}

// A request with a key has it in its header, and every other one has none.
func TestOnce(t *testing.T) {
	var keys []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Method+" "+r.URL.Path+" "+strings.Join(r.Header.Values("Idempotency-Key"), "|"))
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id":"sb_a1b2c3d4e5f6","exec_id":"ex_0123456789ab"}`)
	})
	if _, err := c.CreateOnce(t.Context(), "", "shell"); err == nil || len(keys) > 0 {
		t.Errorf("without a key, %q was sent: %v", keys, err)
	}
	for _, key := range []string{"", "k"} {
		create := func(ctx context.Context, options ...CreateOption) (string, error) {
			return c.Create(ctx, "shell", options...)
		}
		if key != "" {
			create = func(ctx context.Context, options ...CreateOption) (string, error) {
				return c.CreateOnce(ctx, key, "shell", options...)
			}
		}
		if got, err := create(t.Context(), WithLimits(Limits{PIDs: 20})); got != id || err != nil {
			t.Errorf("%s, %v", got, err)
		}
		if _, err := c.Exec(t.Context(), id, Program{Code: "1", Key: key}); err != nil {
			t.Error(err)
		}
		if _, err := c.StartExec(t.Context(), id, Program{Code: "1", Key: key}, false); err != nil {
			t.Error(err)
		}
	}
	var want []string
	for _, key := range []string{"", "k"} {
		want = append(want, "POST /sandboxes "+key, "POST /sandboxes/"+id+"/exec "+key, "POST /sandboxes/"+id+"/execs "+key)
	}
	if !slices.Equal(keys, want) {
		t.Errorf("%q", keys)
	}
}
