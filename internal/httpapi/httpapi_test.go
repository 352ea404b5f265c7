package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// TestAnswers sends each request with the engine in each condition and compares
// the whole answer, byte for byte.
func TestAnswers(t *testing.T) {
	const (
		exec      = "/sandboxes/" + knownID + "/exec"
		described = `{"id":"sb_a1b2c3d4e5f6","language_pack":"python","state":"running","guest_vcpus":1,"guest_ram_mib":256,"boot_path":"cold-boot","created_at":"2025-01-02T03:04:05Z",` +
			`"limits":{"vcpus":1,"memory_mib":256,"disk_mib":128,"pids":512,"timeout_s":3600,"idle_timeout_s":1800,"exec_timeout_s":60,"execs":16,"output_bytes":1048576},` +
			`"expires_at":"2025-01-02T04:04:05Z","idle_expires_at":"2025-01-02T03:34:05Z"}`
		inspected = `{"sandbox":` + described + `,"jail":{"pid":4711,"uid":5000,"gid":5001,"root":"/jail/root",` +
			`"files":[{"path":"/rootfs","kind":"file","mode":"0444","uid":1,"gid":2,"source":"/packs/shell"}],"namespaces":["net"],` +
			`"cgroup":"/emberd/jail","cgroup_limits":{"pids.max":"33"},"missing":["io.max: no disk"],"rlimits":{"core":0},"umask":"0077",` +
			`"bounding_set":["chown"],"console_bytes":65536,"command":["jailer","--id"]}}`
		invalid  = `{"error":"invalid request body","code":"invalid_request"}`
		notFound = `{"error":"sandbox not found","code":"not_found"}`
		noRoute  = `{"error":"no such route","code":"not_found"}`
		noMethod = `{"error":"method not allowed","code":"invalid_request"}`
		tooLarge = `{"error":"request body too large: the limit is %d bytes","code":"too_large"}`
		internal = `{"error":"internal error","code":"internal"}`
	)
	hostile := errors.New("open /var/lib/emberd/jail/secret: permission denied")
	for _, tt := range []struct {
		name, method, path, body string
		engine                   *fakeEngine
		status                   int
		want                     string
	}{
		{name: "create", method: "POST", path: "/sandboxes", body: `{"language_pack":"python"}`, status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, empty body", method: "POST", path: "/sandboxes", status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, white space", method: "POST", path: "/sandboxes", body: " \n", status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, no field", method: "POST", path: "/sandboxes", body: `{}`, status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, null field", method: "POST", path: "/sandboxes", body: `{"language_pack":null}`, status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, boot path", method: "POST", path: "/sandboxes", body: `{"boot_path":"restore"}`, status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, no such boot path", method: "POST", path: "/sandboxes", body: `{"boot_path":"warm"}`, status: 400, want: `{"error":"boot_path is \"warm\"; it can be \"cold-boot\", \"restore\" or \"pool\"","code":"invalid_request"}`},
		{name: "create, not JSON", method: "POST", path: "/sandboxes", body: `language_pack=python`, status: 400, want: invalid},
		{name: "create, cut JSON", method: "POST", path: "/sandboxes", body: `{"language_pack":"py`, status: 400, want: invalid},
		{name: "create, trailing garbage", method: "POST", path: "/sandboxes", body: `{}{}`, status: 400, want: invalid},
		{name: "create, array", method: "POST", path: "/sandboxes", body: `[]`, status: 400, want: invalid},
		{name: "create, null", method: "POST", path: "/sandboxes", body: `null`, status: 400, want: invalid},
		{name: "create, wrong type", method: "POST", path: "/sandboxes", body: `{"language_pack":7}`, status: 400, want: invalid},
		{name: "create, unknown field", method: "POST", path: "/sandboxes", body: `{"pack":"python"}`, status: 400, want: `{"error":"unknown field \"pack\"","code":"invalid_request"}`},
		{name: "create, other case", method: "POST", path: "/sandboxes", body: `{"Language_Pack":"python"}`, status: 400, want: `{"error":"unknown field \"Language_Pack\"","code":"invalid_request"}`},
		{name: "create, field twice", method: "POST", path: "/sandboxes", body: `{"language_pack":"python","language_pack":"shell"}`, status: 400, want: `{"error":"field \"language_pack\" appears twice","code":"invalid_request"}`},
		{name: "create, unknown pack", method: "POST", path: "/sandboxes", body: `{"language_pack":"ruby"}`, status: 400, want: `{"error":"unknown language pack: \"ruby\"","code":"unknown_pack"}`},
		{name: "create, boot fails", method: "POST", path: "/sandboxes", engine: &fakeEngine{err: sandbox.ErrBoot.Because(hostile)}, status: 503, want: `{"error":"the microVM did not become ready","code":"boot_failed"}`},
		{name: "create, shutting down", method: "POST", path: "/sandboxes", engine: &fakeEngine{err: sandbox.ErrClosing}, status: 503, want: `{"error":"emberd is shutting down","code":"shutting_down"}`},
		{name: "create, internal", method: "POST", path: "/sandboxes", engine: &fakeEngine{err: hostile}, status: 500, want: internal},
		{name: "create, quota", method: "POST", path: "/sandboxes", engine: &fakeEngine{err: sandbox.OverQuota("there are 3")}, status: 429, want: `{"error":"there are 3","code":"quota_exceeded"}`},
		{name: "create, no room", method: "POST", path: "/sandboxes", engine: &fakeEngine{err: sandbox.OverCapacity("no memory")}, status: 503, want: `{"error":"no memory","code":"no_capacity"}`},
		{name: "create, limit is a string", method: "POST", path: "/sandboxes", body: `{"vcpus":"2"}`, status: 400, want: invalid},
		{name: "create, limit is a fraction", method: "POST", path: "/sandboxes", body: `{"timeout_s":1.5}`, status: 400, want: invalid},
		{name: "create, limit twice", method: "POST", path: "/sandboxes", body: `{"vcpus":1,"vcpus":1}`, status: 400, want: `{"error":"field \"vcpus\" appears twice","code":"invalid_request"}`},
		{name: "create, endless lifetime", method: "POST", path: "/sandboxes", body: `{"timeout_s":9223372036854775807}`, status: 400, want: `{"error":"timeout_s is 9223372036854775807; no time is that long","code":"invalid_request"}`},
		{name: "create, 4 KiB", method: "POST", path: "/sandboxes", body: padded(`{}`, 4<<10), status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, over 4 KiB", method: "POST", path: "/sandboxes", body: padded(`{}`, 4<<10+1), status: 413, want: fmt.Sprintf(tooLarge, 4<<10)},

		{name: "exec", method: "POST", path: exec, body: `{"code":"print(6*7)"}`,
			engine: &fakeEngine{result: sandbox.ExecResult{Stdout: []byte("42\n"), Warm: true, Duration: 13021 * time.Microsecond}},
			status: 200, want: `{"stdout":"42\n","stderr":"","exit_code":0,"duration_ms":13,"duration_us":13021,"start":"warm","exec_id":"ex_0123456789ab"}`},
		{name: "exec, non-zero exit", method: "POST", path: exec, body: `{"code":"1/0"}`,
			engine: &fakeEngine{result: sandbox.ExecResult{Stderr: []byte("<boom>\n"), ExitCode: 1}},
			status: 200, want: `{"stdout":"","stderr":"<boom>\n","exit_code":1,"duration_ms":0,"duration_us":0,"start":"cold","exec_id":"ex_0123456789ab"}`},
		{name: "exec, timed out", method: "POST", path: exec, body: `{"code":"x","timeout_ms":5}`,
			engine: &fakeEngine{result: sandbox.ExecResult{ExitCode: -1, Err: sandbox.ErrTextTimedOut, Duration: 5 * time.Millisecond}},
			status: 200, want: `{"stdout":"","stderr":"","exit_code":-1,"duration_ms":5,"duration_us":5000,"start":"cold","error":"execution timed out","exec_id":"ex_0123456789ab"}`},
		{name: "exec, output not UTF-8", method: "POST", path: exec, body: `{"code":"x"}`,
			engine: &fakeEngine{result: sandbox.ExecResult{Stdout: []byte("a\xff\xfeb"), Stderr: []byte("grüße")}},
			status: 200, want: `{"stdout":"a��b","stderr":"grüße","stdout_base64":"Yf/+Yg==","exit_code":0,"duration_ms":0,"duration_us":0,"start":"cold","exec_id":"ex_0123456789ab"}`},
		{name: "exec, standard output cut", method: "POST", path: exec, body: `{"code":"x"}`,
			engine: &fakeEngine{result: sandbox.ExecResult{Stdout: []byte("a"), StdoutTruncated: true, ExitCode: 3}},
			status: 200, want: `{"stdout":"a","stderr":"","stdout_truncated":true,"exit_code":3,"duration_ms":0,"duration_us":0,"start":"cold","exec_id":"ex_0123456789ab"}`},
		{name: "exec, out of memory", method: "POST", path: exec, body: `{"code":"x"}`,
			engine: &fakeEngine{result: sandbox.ExecResult{ExitCode: 137, Hit: sandbox.LimitsHit{Memory: true, PIDs: true}}},
			status: 200, want: `{"stdout":"","stderr":"","exit_code":137,"duration_ms":0,"duration_us":0,"start":"cold","limits_hit":["memory_mib","pids"],"exec_id":"ex_0123456789ab"}`},
		{name: "exec, standard error cut", method: "POST", path: exec, body: `{"code":"x"}`,
			engine: &fakeEngine{result: sandbox.ExecResult{Stderr: []byte("\xc3"), StderrTruncated: true}},
			status: 200, want: `{"stdout":"","stderr":"�","stderr_base64":"ww==","stderr_truncated":true,"exit_code":0,"duration_ms":0,"duration_us":0,"start":"cold","exec_id":"ex_0123456789ab"}`},
		{name: "exec, empty body", method: "POST", path: exec, status: 400, want: invalid},
		{name: "exec, not JSON", method: "POST", path: exec, body: `code=1`, status: 400, want: invalid},
		{name: "exec, trailing garbage", method: "POST", path: exec, body: `{"code":"1"} x`, status: 400, want: invalid},
		{name: "exec, code is a number", method: "POST", path: exec, body: `{"code":1}`, status: 400, want: invalid},
		{name: "exec, timeout is a string", method: "POST", path: exec, body: `{"code":"1","timeout_ms":"5"}`, status: 400, want: invalid},
		{name: "exec, timeout is a fraction", method: "POST", path: exec, body: `{"code":"1","timeout_ms":1.5}`, status: 400, want: invalid},
		{name: "exec, base64 is none", method: "POST", path: exec, body: `{"code":"1","stdin_base64":"*"}`, status: 400, want: invalid},
		{name: "exec, base64 is numbers", method: "POST", path: exec, body: `{"code":"1","stdin_base64":[1,2]}`, status: 400, want: invalid},
		{name: "exec, not UTF-8", method: "POST", path: exec, body: "{\"code\":\"\xff\"}", status: 400, want: invalid},
		{name: "exec, no code", method: "POST", path: exec, body: `{}`, status: 400, want: `{"error":"missing field \"code\"","code":"invalid_request"}`},
		{name: "exec, unknown field", method: "POST", path: exec, body: `{"code":"1","timeout":5}`, status: 400, want: `{"error":"unknown field \"timeout\"","code":"invalid_request"}`},
		{name: "exec, negative timeout", method: "POST", path: exec, body: `{"code":"1","timeout_ms":-1}`, status: 400, want: `{"error":"timeout_ms must not be negative","code":"invalid_request"}`},
		{name: "exec, endless timeout", method: "POST", path: exec, body: `{"code":"1","timeout_ms":9223372036854775807}`, status: 400, want: `{"error":"timeout_ms is too large","code":"invalid_request"}`},
		{name: "exec, NUL", method: "POST", path: exec, body: `{"code":"a\u0000b"}`, status: 400, want: `{"error":"code must not contain NUL","code":"invalid_request"}`},
		{name: "exec, two inputs", method: "POST", path: exec, body: `{"code":"1","stdin":"a","stdin_base64":"YQ=="}`, status: 400, want: `{"error":"give stdin or stdin_base64, not both","code":"invalid_request"}`},
		{name: "exec, 1 MiB", method: "POST", path: exec, body: padded(`{"code":"1"}`, 1<<20), status: 200, want: `{"stdout":"","stderr":"","exit_code":0,"duration_ms":0,"duration_us":0,"start":"cold","exec_id":"ex_0123456789ab"}`},
		{name: "exec, over 1 MiB", method: "POST", path: exec, body: padded(`{"code":"1"}`, 1<<20+1), status: 413, want: fmt.Sprintf(tooLarge, 1<<20)},
		{name: "exec, unknown id", method: "POST", path: "/sandboxes/sb_000000000000/exec", body: `{"code":"1"}`, status: 404, want: notFound},
		{name: "exec, malformed id", method: "POST", path: "/sandboxes/sb_A1B2C3D4E5F6/exec", body: `{"code":"1"}`, status: 404, want: notFound},
		{name: "exec, too many", method: "POST", path: exec, body: `{"code":"1"}`, engine: &fakeEngine{err: sandbox.OverQuota("16 programs run")}, status: 429, want: `{"error":"16 programs run","code":"quota_exceeded"}`},
		{name: "exec, lost", method: "POST", path: exec, body: `{"code":"1"}`, engine: &fakeEngine{err: sandbox.ErrLost.Because(hostile)}, status: 502, want: `{"error":"the microVM ended while the program ran; its exit code is unknown","code":"sandbox_lost"}`},

		{name: "get", method: "GET", path: "/sandboxes/" + knownID, status: 200, want: described},
		{name: "get, unknown id", method: "GET", path: "/sandboxes/sb_000000000000", status: 404, want: notFound},
		{name: "get, malformed id", method: "GET", path: "/sandboxes/..%2f..%2fetc%2fpasswd", status: 404, want: notFound},
		{name: "list", method: "GET", path: "/sandboxes", status: 200, want: `{"sandboxes":[` + described + `]}`},
		{name: "list, none", method: "GET", path: "/sandboxes", engine: &fakeEngine{err: hostile}, status: 200, want: `{"sandboxes":[]}`},
		{name: "inspect", method: "GET", path: "/sandboxes/" + knownID + "/inspect", status: 200, want: inspected},
		{name: "inspect, unknown", method: "GET", path: "/sandboxes/sb_ffffffffffff/inspect", status: 404, want: notFound},
		{name: "delete", method: "DELETE", path: "/sandboxes/" + knownID, status: 204},
		{name: "delete, unknown id", method: "DELETE", path: "/sandboxes/sb_000000000000", status: 404, want: notFound},
		{name: "delete, malformed id", method: "DELETE", path: "/sandboxes/nonsense", status: 404, want: notFound},
		{name: "delete, internal", method: "DELETE", path: "/sandboxes/" + knownID, engine: &fakeEngine{err: hostile}, status: 500, want: internal},

		{name: "info", method: "GET", path: "/info", status: 200, want: `{"guest_ram_mib":256,"guest_vcpus":1,"boot_path":"cold-boot","packs":["python","shell"],"work_dir":"/data","pool":[{"pack":"python","size":{"vcpus":1,"memory_mib":256},"ready":1,"target":2,"min":2,"max":4,"hits":5,"misses":6,"refills":7,"failures":8}],"kvm":"emulated","egress":true,"versions":{"emberd":"1.2.3","firecracker":"1.12.1","host_kernel":"6.1.0"}}`},
		{name: "pool", method: "GET", path: "/pool", status: 200, want: `{"pool":[{"pack":"python","size":{"vcpus":1,"memory_mib":256},"ready":1,"target":2,"min":2,"max":4,"hits":5,"misses":6,"refills":7,"failures":8}]}`},
		{name: "health", method: "GET", path: "/healthz", status: 200, want: `{"status":"ok"}`},
		{name: "ready", method: "GET", path: "/readyz", status: 200, want: `{"status":"ready"}`},

		{name: "no route", method: "GET", path: "/", status: 404, want: noRoute},
		{name: "slash at the end", method: "POST", path: "/sandboxes/", status: 404, want: noRoute},
		{name: "unclean path", method: "GET", path: "//sandboxes", status: 404, want: noRoute},
		{name: "dots in the path", method: "GET", path: "/sandboxes/../info", status: 404, want: noRoute},
		{name: "no such method", method: "PUT", path: "/sandboxes", status: 405, want: noMethod},
		{name: "exec is no GET", method: "GET", path: exec, status: 405, want: noMethod},
		{name: "HEAD", method: "HEAD", path: "/healthz", status: 200, want: `{"status":"ok"}`}, // net/http drops the body
		{name: "OPTIONS", method: "OPTIONS", path: "/sandboxes", status: 204},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := request(t, newAPI(cmp.Or(tt.engine, &fakeEngine{})), tt.method, tt.path, tt.body)
			if rec.Code != tt.status {
				t.Errorf("status %d, want %d", rec.Code, tt.status)
			}
			want := tt.want
			if want != "" {
				want += "\n"
				if got := rec.Header().Get("Content-Type"); got != "application/json" {
					t.Errorf("content type %q", got)
				}
			}
			if got := rec.Body.String(); got != want {
				t.Errorf("body\n%swant\n%s", got, want)
			}
			for name := range rec.Header() {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("header %s lets other origins in", name)
				}
			}
		})
	}
}

// padded returns body with white space before it, size bytes in all.
func padded(body string, size int) string {
	return strings.Repeat(" ", size-len(body)) + body
}

// TestRequestsReachTheEngine checks what the engine is asked for.
func TestRequestsReachTheEngine(t *testing.T) {
	for body, want := range map[string]string{
		``: "python", `{}`: "python", `{"language_pack":""}`: "python", `{"language_pack":"shell"}`: "shell",
	} {
		e := &fakeEngine{}
		request(t, newAPI(e), "POST", "/sandboxes", body)
		if e.spec.Pack != want {
			t.Errorf("%q asks for pack %q, want %q", body, e.spec.Pack, want)
		}
	}
	e := &fakeEngine{}
	request(t, newAPI(e), "POST", "/sandboxes", `{"vcpus":2,"memory_mib":512,"disk_mib":100,"pids":99,"timeout_s":60,"idle_timeout_s":30,"exec_timeout_s":10,"execs":3,"output_bytes":4096}`)
	asked := sandbox.Limits{
		Size: sandbox.Size{VCPUs: 2, MemoryMiB: 512}, DiskMiB: 100, PIDs: 99, Lifetime: time.Minute,
		IdleTimeout: 30 * time.Second, ExecTimeout: 10 * time.Second, Execs: 3, OutputBytes: 4096,
	}
	if e.spec.Limits != asked {
		t.Errorf("asked for %+v, want %+v", e.spec.Limits, asked)
	}
	for body, want := range map[string]sandbox.ExecRequest{
		`{"code":""}`: {},
		`{"code":"é\n","stdin":"in","timeout_ms":1500}`:          {Code: "é\n", Stdin: []byte("in"), Timeout: 1500 * time.Millisecond},
		`{"code":"1","stdin_base64":"AP8=","stdin":""}`:          {Code: "1", Stdin: []byte{0, 0xff}},
		`{"stdin":null,"timeout_ms":null,"code":"\ud83d\ude00"}`: {Code: "😀"},
	} {
		e := &fakeEngine{}
		rec := request(t, newAPI(e), "POST", "/sandboxes/"+knownID+"/exec", body)
		if rec.Code != 200 || !reflect.DeepEqual(e.exec, want) {
			t.Errorf("%s: status %d, engine was asked for %+v, want %+v", body, rec.Code, e.exec, want)
		}
	}
}

// TestRefusedRequestsDoNothing checks that no engine hears of a bad request.
func TestRefusedRequestsDoNothing(t *testing.T) {
	e := &fakeEngine{}
	h := newAPI(e)
	request(t, h, "POST", "/sandboxes", `{"pack":"python"}`)
	request(t, h, "POST", "/sandboxes/"+knownID+"/exec", `{"code":"1"}garbage`)
	request(t, h, "DELETE", "/sandboxes/"+knownID+"x", "")
	if len(e.calls) != 0 {
		t.Errorf("engine was called: %v", e.calls)
	}
}

func TestHeaders(t *testing.T) {
	for err, want := range map[error]string{
		sandbox.ErrClosing: "5", sandbox.ErrQuota: "1", sandbox.ErrCapacity: "1", sandbox.ErrBoot: "", sandbox.ErrNotFound: "",
	} {
		rec := request(t, newAPI(&fakeEngine{err: err}), "POST", "/sandboxes", "")
		if got := rec.Header().Get("Retry-After"); got != want {
			t.Errorf("%v: Retry-After %q, want %q", err, got, want)
		}
	}
	for _, method := range []string{"PUT", "OPTIONS"} {
		rec := request(t, newAPI(&fakeEngine{}), method, "/sandboxes", "")
		if got, want := rec.Header().Get("Allow"), "GET, HEAD, POST"; got != want {
			t.Errorf("%s: Allow %q, want %q", method, got, want)
		}
	}
}

func TestNotReady(t *testing.T) {
	for want, err := range map[string]error{
		`{"error":"emberd is not ready","code":"internal"}`:          errors.New("stat /var/lib/emberd: gone"),
		`{"error":"emberd is shutting down","code":"shutting_down"}`: sandbox.ErrClosing,
	} {
		rec := request(t, newLoggedAPI(&fakeEngine{}, err, &testenv.Log{}), "GET", "/readyz", "")
		if rec.Code != 503 || strings.TrimSpace(rec.Body.String()) != want {
			t.Errorf("%d %s, want 503 %s", rec.Code, rec.Body, want)
		}
	}
}

// TestCauseGoesToTheLog checks that what the client is not told is not lost.
func TestCauseGoesToTheLog(t *testing.T) {
	var log testenv.Log
	cause := errors.New("open /var/lib/emberd/jail/secret: permission denied")
	request(t, newLoggedAPI(&fakeEngine{err: cause}, nil, &log), "POST", "/sandboxes/"+knownID+"/exec", `{"code":"1"}`)
	for _, want := range []string{`"level":"ERROR"`, cause.Error(), `"sandbox_id":"` + knownID + `"`, `"route":"POST /sandboxes/{id}/exec"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, log.String())
		}
	}
}

func TestPanic(t *testing.T) {
	var log testenv.Log
	e := &fakeEngine{onCall: func(context.Context, string) { panic("impossible step") }}
	h := newLoggedAPI(e, nil, &log)
	for range 2 {
		rec := request(t, h, "POST", "/sandboxes", "")
		if got, want := strings.TrimSpace(rec.Body.String()), `{"error":"internal error","code":"internal"}`; rec.Code != 500 || got != want {
			t.Errorf("%d %s, want 500 %s", rec.Code, got, want)
		}
	}
	for _, want := range []string{"impossible step", `"panics":2`, "httpapi_test.go"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

// TestChunkedBody checks that a body that does not tell its length is held to
// the same limit, over a real connection.
func TestChunkedBody(t *testing.T) {
	srv := httptest.NewServer(newAPI(&fakeEngine{}))
	defer srv.Close()
	body := io.MultiReader(strings.NewReader(padded(`{}`, rest.MaxSmallBody)), strings.NewReader(" "))
	resp, err := http.Post(srv.URL+"/sandboxes", "", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e rest.Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != 413 || e.Code != "too_large" {
		t.Errorf("%d %+v, %v; want 413 too_large", resp.StatusCode, e, err)
	}
}

// TestSlowBody checks that a client cannot keep a connection by never ending its
// body, and that the time it has does not limit the program's.
func TestSlowBody(t *testing.T) {
	e := &fakeEngine{onCall: func(ctx context.Context, _ string) {
		select {
		case <-ctx.Done():
			t.Error("the body's deadline ended the program")
		case <-time.After(300 * time.Millisecond):
		}
	}}
	a := unguarded(e, nil, &testenv.Log{})
	a.bodyGrace = 100 * time.Millisecond
	srv := httptest.NewServer(&gate{a, Access{}})
	defer srv.Close()

	endless, w := io.Pipe()
	defer w.Close()
	resp, err := http.Post(srv.URL+"/sandboxes", "", endless)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %d, want 408", resp.StatusCode)
	}
	resp, err = http.Post(srv.URL+"/sandboxes/"+knownID+"/exec", "", strings.NewReader(`{"code":"1"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d, want 200", resp.StatusCode)
	}
}

// TestClientGoesAway checks that a create whose client is gone leaves no
// sandbox, and that an exec whose client is gone is ended.
func TestClientGoesAway(t *testing.T) {
	for _, tt := range []struct {
		path, body string
		want       []string
	}{
		{"/sandboxes", "", []string{"create", "delete"}},
		{"/sandboxes/" + knownID + "/exec", `{"code":"1"}`, []string{"exec"}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		e := &fakeEngine{onCall: func(ctx context.Context, name string) {
			if name == "delete" {
				if err := ctx.Err(); err != nil {
					t.Errorf("delete with a context that is over: %v", err)
				}
				return
			}
			cancel()
			<-ctx.Done() // the server noticed
		}}
		var log testenv.Log
		srv := httptest.NewServer(newLoggedAPI(e, nil, &log))
		req, err := http.NewRequestWithContext(ctx, "POST", srv.URL+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("%s: an answer to a canceled request", tt.path)
		}
		srv.Close() // waits for the handler
		if log.String() != "" {
			t.Errorf("%s: logged %s", tt.path, log.String())
		}
		if !reflect.DeepEqual(e.calls, tt.want) {
			t.Errorf("%s: engine calls %v, want %v", tt.path, e.calls, tt.want)
		}
	}
}
