package client

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/emberd/emberd/api/rest"
)

func TestEgress(t *testing.T) {
	const id, policy = "sb_a1b2c3d4e5f6", `{"allow":[{"host":"pypi.org"}]}`
	const denied = `{"host":"pypi.org","port":443,"protocol":"tcp","reason":"no_rule","count":2}`
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
		answer := map[string]string{
			"POST /sandboxes":                          `{"id":"` + id + `"}`,
			"PUT /sandboxes/" + id + "/egress":         policy,
			"GET /sandboxes/" + id + "/egress":         policy,
			"GET /sandboxes/" + id + "/egress/denials": `{"denials":[` + denied + `]}`,
			"POST /sandboxes/" + id + "/exec":          `{"egress_denied":[` + denied + `]}`,
		}[r.Method+" "+r.URL.Path]
		if answer == "" {
			w.WriteHeader(http.StatusConflict)
			answer = `{"error":"no interface","code":"no_egress"}`
		}
		_, _ = io.WriteString(w, answer)
	}))
	defer srv.Close()
	c := New(srv.URL)
	want := rest.EgressRequest{Allow: []rest.EgressRuleRequest{{Host: "pypi.org"}}}
	inForce := rest.Egress{Allow: []rest.EgressRule{{Host: "pypi.org"}}}
	wantDenied := []rest.EgressDenial{{Host: "pypi.org", Port: 443, Protocol: "tcp", Reason: "no_rule", Count: 2}}

	if got, err := c.Create(t.Context(), "python", WithEgress(want)); err != nil || got != id {
		t.Errorf("create: %s, %v", got, err)
	}
	if got, err := c.SetEgress(t.Context(), id, want); err != nil || !reflect.DeepEqual(got, inForce) {
		t.Errorf("set: %+v, %v", got, err)
	}
	if got, err := c.Egress(t.Context(), id); err != nil || !reflect.DeepEqual(got, inForce) {
		t.Errorf("get: %+v, %v", got, err)
	}
	if got, err := c.EgressDenials(t.Context(), id); err != nil || !reflect.DeepEqual(got, wantDenied) {
		t.Errorf("denials: %+v, %v", got, err)
	}
	if got, err := c.Exec(t.Context(), id, Program{Code: "1"}); err != nil || !reflect.DeepEqual(got.EgressDenied, wantDenied) {
		t.Errorf("exec: %+v, %v", got, err)
	}
	wantAsked := []string{
		`POST /sandboxes {"language_pack":"python","egress":` + policy + `}`,
		"PUT /sandboxes/" + id + "/egress " + policy,
		"GET /sandboxes/" + id + "/egress",
		"GET /sandboxes/" + id + "/egress/denials",
		"POST /sandboxes/" + id + `/exec {"code":"1"}`,
	}
	if !reflect.DeepEqual(asked, wantAsked) {
		t.Errorf("asked was\n%q, want\n%q", asked, wantAsked)
	}
	_, err := c.SetEgress(t.Context(), "sb_000000000000", rest.EgressRequest{})
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != "no_egress" || e.Status != http.StatusConflict {
		t.Errorf("without an interface: %v", err)
	}
}
