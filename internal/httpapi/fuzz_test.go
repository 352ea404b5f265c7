package httpapi

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
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
		`{"egress":{"allow":[{"host":"a.b","ports":[443]}]},"vcpus":1}`, `{"egress":{}}`, `{"egress":null}`,
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
		if (got.Egress != nil) != (want.Egress != nil) {
			t.Fatalf("%q: got %+v, want %+v", body, got.Egress, want.Egress)
		}
		if want.Egress != nil {
			checkEgress(t, body, *got.Egress, *want.Egress)
		}
	})
}

// checkEgress compares what was made of a policy with what encoding/json makes of
// it.
func checkEgress(t *testing.T, body []byte, got sandbox.Egress, want rest.EgressRequest) {
	t.Helper()
	if len(got.Allow) != len(want.Allow) || got.RateKiBps != want.RateKiBps || got.TotalMiB != want.TotalMiB {
		t.Fatalf("%q: got %+v, want %+v", body, got, want)
	}
	for i, rule := range got.Allow {
		asked := want.Allow[i]
		if rule.Host != asked.Host || string(rule.Protocol) != asked.Protocol || rule.CIDR.IsValid() != (asked.CIDR != "") || len(rule.Ports) != len(asked.Ports) {
			t.Fatalf("%q: rule %d: got %+v, want %+v", body, i, rule, asked)
		}
		for j, port := range rule.Ports {
			if int(port) != asked.Ports[j] || port == 0 {
				t.Fatalf("%q: rule %d: got %+v, want %+v", body, i, rule, asked)
			}
		}
		p, err := netip.ParsePrefix(asked.CIDR)
		if err != nil && asked.CIDR != "" {
			addr := netip.MustParseAddr(asked.CIDR)
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		if rule.CIDR != p.Masked() {
			t.Fatalf("%q: rule %d: got %+v, want %+v", body, i, rule, asked)
		}
	}
}

// FuzzDecodeEgress checks that whatever is accepted is what encoding/json makes of
// it, no port turned into another, and that whatever is not is the client's fault.
func FuzzDecodeEgress(f *testing.F) {
	for _, s := range []string{
		`{"allow":[{"host":"api.example.org","ports":[443]},{"host":"*.example.com"},{"cidr":"203.0.113.0/24","ports":[5432],"protocol":"tcp"}]}`,
		`{"allow":[],"rate_kib_s":1,"total_mib":2}`, `{"allow":[{"cidr":"203.0.113.7"}]}`, `{"allow":[{"ports":[0]}]}`, `{"allow":[{"ports":[65536]}]}`,
		`{"allow":[{"ports":[65979]}]}`, `{"allow":[{"ports":[-1]}]}`, `{"allow":[{"ports":[1e2]}]}`, `{"allow":[{"ports":[null]}]}`, `{"allow":[null]}`,
		`{"allow":null}`, `{"allow":{}}`, `{"allow":"x"}`, `{}`, `null`, ``, `{"allow":[{"host":"a","host":"b"}]}`, `{"allow":[{"Host":"a"}]}`,
		`{"allow":[[{"host":"a"}]]}`, `{"allow":[{"host":"\ud800"}]}`, `{"allow":[{"cidr":"::ffff:10.0.0.0/104"}]}`, `{"allow":[{}],"allow":[]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decodeEgress(body)
		if err != nil {
			if code, _ := sandbox.Public(err); code != sandbox.CodeInvalid {
				t.Fatalf("error of code %s: %v", code, err)
			}
			return
		}
		var want rest.EgressRequest
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("accepted %q, but encoding/json says: %v", body, err)
		}
		checkEgress(t, body, got, want)
	})
}

// FuzzRequest sends whatever net/http takes for a request to a listener that
// asks for a key. Nothing reaches the engine for somebody who may not come in,
// nothing is the daemon's fault, and every answer is JSON of a known form.
func FuzzRequest(f *testing.F) {
	const host, key = "Host: localhost:7777\r\n", "Authorization: Bearer good\r\n"
	for _, s := range []string{
		"GET /sandboxes HTTP/1.1\r\n" + host + key + "\r\n",
		"GET /sandboxes/" + knownID + " HTTP/1.1\r\n" + host + key + "Origin: http://localhost:7777\r\n\r\n",
		"DELETE /sandboxes/" + knownID + " HTTP/1.1\r\n" + host + key + "Sec-Fetch-Site: cross-site\r\n\r\n",
		"DELETE /sandboxes/" + knownID + " HTTP/1.1\r\n" + host + key + "Origin: http://evil.test\r\n\r\n",
		"POST /sandboxes HTTP/1.1\r\n" + host + key + "Content-Length: 2\r\n\r\n{}",
		"POST /sandboxes/" + knownID + "/exec HTTP/1.1\r\n" + host + key + "Content-Length: 12\r\n\r\n{\"code\":\"1\"}",
		"POST /sandboxes/" + knownID + "/exec HTTP/1.1\r\n" + host + key + "Transfer-Encoding: chunked\r\n\r\nc\r\n{\"code\":\"1\"}\r\n0\r\n\r\n",
		"PUT /sandboxes/" + knownID + "/egress HTTP/1.1\r\n" + host + key + "Content-Length: 28\r\n\r\n{\"allow\":[{\"host\":\"a.test\"}]}",
		"GET http://evil.test/sandboxes HTTP/1.1\r\n" + host + key + "\r\n",
		"GET /sandboxes HTTP/1.0\r\n" + key + "\r\n",
		"DELETE /sandboxes/%2e%2e HTTP/1.1\r\n" + host + key + "\r\n",
		"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", "CONNECT x:1 HTTP/1.1\r\n" + host + "\r\n",
		"GET //healthz?" + strings.Repeat("a", 99) + " HTTP/1.1\r\n" + host + "\r\n", "HEAD /info HTTP/1.1\r\n" + host + key + "\r\n",
	} {
		f.Add([]byte(s))
	}
	hosts := []string{"localhost:7777", "[::1]:7777"}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		r = r.WithContext(t.Context())
		e := &fakeEngine{}
		rec := httptest.NewRecorder()
		access := Access{Hosts: hosts, Keys: fakeKeys{asked: true, good: t.Context()}}
		(&gate{unguarded(e, nil, &testenv.Log{}), access}).ServeHTTP(rec, r)

		may := slices.Contains(hosts, strings.ToLower(r.Host)) && strings.Contains(r.Header.Get("Authorization"), "good")
		for _, origin := range r.Header["Origin"] {
			may = may && strings.HasSuffix(origin, "//"+r.Host)
		}
		for _, site := range r.Header["Sec-Fetch-Site"] {
			may = may && (site == "none" || site == "same-origin")
		}
		if len(e.calls) > 0 && !may {
			t.Fatalf("%v was reached by %q", e.calls, in)
		}
		if rec.Code >= 500 {
			t.Fatalf("status %d for %q: %s", rec.Code, in, rec.Body)
		}
		if rec.Body.Len() == 0 {
			return
		}
		if rec.Header().Get("Content-Type") != "application/json" || !json.Valid(rec.Body.Bytes()) {
			t.Fatalf("the answer to %q is %v %q", in, rec.Header(), rec.Body)
		}
		var refusal rest.Error
		if rec.Code >= 400 && (json.Unmarshal(rec.Body.Bytes(), &refusal) != nil || refusal.Code == "" || refusal.Message == "") {
			t.Fatalf("status %d without a reason: %s", rec.Code, rec.Body)
		}
	})
}
