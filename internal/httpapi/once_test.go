package httpapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// sent sends a request with those keys, as the API key called "somebody" if key is
// good.
func sent(h http.Handler, path, body, key string, keys ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header["Idempotency-Key"] = keys
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// What the engine is asked to carry out once is what has a key, and the same
// request has the same words for it and no other one has.
func TestOnce(t *testing.T) {
	e := &fakeEngine{}
	api := unguarded(e, nil, &testenv.Log{})
	anybody := &gate{api, Access{}}
	somebody := &gate{api, Access{Keys: fakeKeys{asked: true, good: t.Context()}}}
	ask := func(h http.Handler, path, body, apiKey, key string) sandbox.Once {
		t.Helper()
		e.spec, e.exec = sandbox.Spec{}, sandbox.ExecRequest{}
		if rec := sent(h, path, body, apiKey, key); rec.Code >= 300 {
			t.Fatalf("%s: %d %s", path, rec.Code, rec.Body)
		}
		if path == "/sandboxes" {
			return e.spec.Once
		}
		return e.exec.Once
	}
	const create, exec = "/sandboxes", "/sandboxes/" + knownID + "/exec"
	first := ask(anybody, create, `{}`, "", "k")
	if first.Key != "k" || first.Tenant != "" || first.IsZero() {
		t.Errorf("%+v", first)
	}
	if again := ask(anybody, create, "{}\n", "", "k"); again != first {
		t.Errorf("%+v became %+v", first, again)
	}
	if theirs := ask(somebody, create, `{}`, "good", "k"); theirs.Tenant != "somebody" || theirs.Name() == first.Name() || theirs.ExecID(knownID) == first.ExecID(knownID) {
		t.Errorf("another's is %+v", theirs)
	}
	if other := ask(anybody, create, `{"language_pack":"python"}`, "", "k"); other == first || other.Name() != first.Name() {
		t.Errorf("for another body it is %+v", other)
	}
	run := ask(anybody, exec, `{"code":"1"}`, "", "k")
	start := ask(anybody, exec+"s", `{"code":"1"}`, "", "k")
	if run == start || run.ExecID(knownID) != start.ExecID(knownID) || run.ExecID("sb_000000000000") == run.ExecID(knownID) {
		t.Errorf("%+v and %+v", run, start)
	}
	if _, err := sandbox.ParseExecID(string(run.ExecID(knownID))); err != nil || len(run.Digest()) != 32 {
		t.Errorf("%s, %d bytes, %v", run.ExecID(knownID), len(run.Digest()), err)
	}

	rec := httptest.NewRecorder()
	anybody.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, create, nil))
	if rec.Code != http.StatusCreated || !e.spec.Once.IsZero() {
		t.Errorf("without a key: %d, %+v", rec.Code, e.spec.Once)
	}
}

func TestOnceKeysThatAreNone(t *testing.T) {
	for _, path := range []string{"/sandboxes", "/sandboxes/" + knownID + "/exec", "/sandboxes/" + knownID + "/execs"} {
		for _, tt := range []struct {
			want string
			keys []string
		}{
			{"the Idempotency-Key has 0 characters; it can have 1 to 128", []string{""}},
			{"the Idempotency-Key has 129 characters; it can have 1 to 128", []string{strings.Repeat("k", 129)}},
			{"the Idempotency-Key has the byte 0x20; it can have visible characters of ASCII only", []string{"a b"}},
			{"the Idempotency-Key has the byte 0xc3; it can have visible characters of ASCII only", []string{"ä"}},
			{"Idempotency-Key is given twice", []string{"a", "a"}},
		} {
			e := &fakeEngine{}
			rec := sent(newAPI(e), path, body(path), "", tt.keys...)
			if rec.Code != http.StatusBadRequest || !strings.Contains(rec.Body.String(), tt.want) || len(e.calls) > 0 {
				t.Errorf("%s %q: %d %s, engine calls %v", path, tt.keys, rec.Code, rec.Body, e.calls)
			}
		}
		if rec := sent(newAPI(&fakeEngine{}), path, body(path), "", strings.Repeat("~", 128)); rec.Code >= 300 {
			t.Errorf("%s: the longest key: %d %s", path, rec.Code, rec.Body)
		}
		if rec := sent(newAPI(&fakeEngine{err: sandbox.ErrKeyReused}), path, body(path), "", "k"); rec.Code != http.StatusUnprocessableEntity || !strings.Contains(rec.Body.String(), `"key_reused"`) {
			t.Errorf("%s: another request: %d %s", path, rec.Code, rec.Body)
		}
	}
}

// body is one that path takes.
func body(path string) string {
	if path == "/sandboxes" {
		return ""
	}
	return `{"code":"1"}`
}

// A sandbox that is to be made once is there for its client to come back.
func TestOnceIsKeptForAClientThatGoesAway(t *testing.T) {
	for keys, want := range map[string]string{"": "create delete", "k": "create"} {
		ctx, cancel := context.WithCancel(t.Context())
		e := &fakeEngine{onCall: func(context.Context, string) { cancel() }}
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/sandboxes", nil)
		if keys != "" {
			r.Header.Set("Idempotency-Key", keys)
		}
		newAPI(e).ServeHTTP(httptest.NewRecorder(), r)
		if got := strings.Join(e.calls, " "); got != want {
			t.Errorf("with the key %q: %s", keys, got)
		}
	}
}
