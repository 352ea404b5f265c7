package httpapi

import (
	"cmp"
	"encoding/json"
	"strings"
	"testing"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// FuzzDecodeExec checks that whatever is accepted is what encoding/json makes
// of it, and that whatever is not is the client's fault.
func FuzzDecodeExec(f *testing.F) {
	for _, s := range []string{
		`{"code":"print(6*7)","stdin":"in","timeout_ms":5}`, `{"code":"","stdin_base64":"AP8="}`, `{}`, `null`, `[`, ``,
		`{"code":"a","code":"b"}`, `{"code":"\ud800"}`, `{"code":{"code":"x"}}`, `{"code":"1"} `, "{\"code\":\"\xff\"}",
		`{"code":"1","timeout_ms":1e3}`, `{"Code":"1"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decodeExec(body)
		if err != nil {
			if code, _ := sandbox.Public(err); code != sandbox.CodeInvalid {
				t.Fatalf("error of code %s: %v", code, err)
			}
			return
		}
		var want rest.ExecRequest
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("accepted %q, but encoding/json says: %v", body, err)
		}
		if got.Code != want.Code || got.Timeout < 0 || got.Timeout.Milliseconds() != want.TimeoutMS ||
			string(got.Stdin) != want.Stdin+string(want.StdinBase64) || strings.Contains(got.Code, "\x00") {
			t.Fatalf("%q: got %+v, want %+v", body, got, want)
		}
	})
}

// FuzzDecodeCreate checks that whatever is accepted is what encoding/json makes
// of it, and that whatever is not is the client's fault.
func FuzzDecodeCreate(f *testing.F) {
	for _, s := range []string{
		`{"language_pack":"shell","vcpus":2,"memory_mib":512,"disk_mib":100,"pids":64}`, `{}`, `null`, ``,
		`{"timeout_s":60,"idle_timeout_s":30,"exec_timeout_s":10,"execs":3,"output_bytes":4096}`,
		`{"vcpus":1e3}`, `{"vcpus":-1}`, `{"timeout_s":9223372036854775807}`, `{"Limits":{"vcpus":1}}`, `{"vcpus":1,"vcpus":2}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decodeCreate(body)
		if err != nil {
			if code, _ := sandbox.Public(err); code != sandbox.CodeInvalid {
				t.Fatalf("error of code %s: %v", code, err)
			}
			return
		}
		var want rest.CreateRequest
		if err := json.Unmarshal(body, &want); err != nil && len(body) > 0 {
			t.Fatalf("accepted %q, but encoding/json says: %v", body, err)
		}
		if got.Pack != cmp.Or(want.LanguagePack, sandbox.DefaultPack) || describeLimits(got.Limits) != want.Limits {
			t.Fatalf("%q: got %+v, want %+v", body, got, want)
		}
	})
}
