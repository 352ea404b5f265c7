package httpapi

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry"
)

const issued = `{"allow":[{"host":"api.example.org","ports":[443]},{"host":"*.example.com"},{"cidr":"203.0.113.0/24","ports":[5432],"protocol":"tcp"}]}`

var issuedPolicy = sandbox.Egress{Allow: []sandbox.EgressRule{
	{Host: "api.example.org", Ports: []uint16{443}},
	{Host: "*.example.com"},
	{CIDR: netip.MustParsePrefix("203.0.113.0/24"), Ports: []uint16{5432}, Protocol: sandbox.TCP},
}}

var refused = []sandbox.EgressDenial{
	{
		Host: "pypi.org", Protocol: sandbox.DNS, Reason: sandbox.DeniedNoRule, Count: 2, Last: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC),
		Rule: &sandbox.EgressRule{Host: "pypi.org", Ports: []uint16{80, 443}, Protocol: sandbox.TCP},
	},
	{Addr: netip.MustParseAddr("169.254.169.254"), Port: 80, Protocol: sandbox.TCP, Reason: sandbox.DeniedRange, Count: 1},
}

const refusedJSON = `[{"host":"pypi.org","protocol":"dns","reason":"no_rule","rule":{"host":"pypi.org","ports":[80,443],"protocol":"tcp"},"count":2,"last":"2025-01-02T03:04:05Z"},` +
	`{"addr":"169.254.169.254","port":80,"protocol":"tcp","reason":"forbidden_address","count":1}]`

func TestEgressAnswers(t *testing.T) {
	const (
		path     = "/sandboxes/" + knownID + "/egress"
		unknown  = "/sandboxes/sb_000000000000/egress"
		notFound = `{"error":"sandbox not found","code":"not_found"}`
		noEgress = `{"error":"the sandbox was made without egress, and so has no network interface; make one with egress","code":"no_egress"}`
		invalid  = `{"error":"invalid request body","code":"invalid_request"}`
	)
	says := func(text string) string {
		b, _ := json.Marshal(rest.Error{Message: text, Code: "invalid_request"})
		return string(b)
	}
	for _, tt := range []struct {
		name, method, path, body string
		engine                   *fakeEngine
		status                   int
		want                     string
	}{
		{name: "set", method: "PUT", path: path, body: issued, status: 200, want: issued},
		{name: "set, nothing", method: "PUT", path: path, body: `{"allow":[],"rate_kib_s":10,"total_mib":20}`, status: 200, want: `{"allow":[],"rate_kib_s":10,"total_mib":20}`},
		{name: "set, one address", method: "PUT", path: path, body: `{"allow":[{"cidr":"203.0.113.7"}]}`, status: 200, want: `{"allow":[{"cidr":"203.0.113.7/32"}]}`},
		{name: "set, no interface", method: "PUT", path: path, body: issued, engine: &fakeEngine{err: sandbox.ErrNoEgress}, status: 409, want: noEgress},
		{name: "set, not granted", method: "PUT", path: path, body: issued, engine: &fakeEngine{err: sandbox.Invalid("egress: rule 1: no")}, status: 400, want: says("egress: rule 1: no")},
		{name: "set, broken", method: "PUT", path: path, body: issued, engine: &fakeEngine{err: fmt.Errorf("netlink")}, status: 500, want: `{"error":"internal error","code":"internal"}`},
		{name: "set, unknown id", method: "PUT", path: unknown, body: issued, status: 404, want: notFound},
		{name: "set, no body", method: "PUT", path: path, status: 400, want: invalid},
		{name: "set, empty", method: "PUT", path: path, body: `{}`, status: 400, want: says(`missing field "allow"`)},
		{name: "set, null", method: "PUT", path: path, body: `{"allow":null}`, status: 400, want: says(`missing field "allow"`)},
		{name: "set, no list", method: "PUT", path: path, body: `{"allow":{}}`, status: 400, want: invalid},
		{name: "set, a rule that is null", method: "PUT", path: path, body: `{"allow":[null]}`, status: 400, want: invalid},
		{name: "set, a rule that is text", method: "PUT", path: path, body: `{"allow":["example.org"]}`, status: 400, want: invalid},
		{name: "set, unknown field", method: "PUT", path: path, body: `{"allow":[{"host":"a.b"},{"name":"a.b"}]}`, status: 400, want: says(`unknown field "allow[1].name"`)},
		{name: "set, other case", method: "PUT", path: path, body: `{"allow":[{"Host":"a.b"}]}`, status: 400, want: says(`unknown field "allow[0].Host"`)},
		{name: "set, field twice", method: "PUT", path: path, body: `{"allow":[{"host":"a.b","host":"c.d"}]}`, status: 400, want: says(`field "allow[0].host" appears twice`)},
		{name: "set, list twice", method: "PUT", path: path, body: `{"allow":[],"allow":[]}`, status: 400, want: says(`field "allow" appears twice`)},
		{name: "set, port 0", method: "PUT", path: path, body: `{"allow":[{"host":"a.b","ports":[443,0]}]}`, status: 400, want: says("egress: rule 1: port is 0; ports go from 1 to 65535")},
		{name: "set, port 65536", method: "PUT", path: path, body: `{"allow":[{"host":"a.b"},{"host":"a.b","ports":[65536]}]}`, status: 400, want: says("egress: rule 2: port is 65536; ports go from 1 to 65535")},
		{name: "set, port that would wrap", method: "PUT", path: path, body: `{"allow":[{"host":"a.b","ports":[65979]}]}`, status: 400, want: says("egress: rule 1: port is 65979; ports go from 1 to 65535")},
		{name: "set, port of text", method: "PUT", path: path, body: `{"allow":[{"host":"a.b","ports":["443"]}]}`, status: 400, want: invalid},
		{name: "set, port that is null", method: "PUT", path: path, body: `{"allow":[{"host":"a.b","ports":[null]}]}`, status: 400, want: invalid},
		{name: "set, one port", method: "PUT", path: path, body: `{"allow":[{"host":"a.b","ports":443}]}`, status: 400, want: invalid},
		{name: "set, too many ports", method: "PUT", path: path, body: `{"allow":[{"host":"a.b","ports":[1` + strings.Repeat(",1", 32) + `]}]}`, status: 400, want: says(`"allow[0].ports" has more than 32 elements`)},
		{name: "set, 10,000 rules", method: "PUT", path: path, body: `{"allow":[{"host":"a.b"}` + strings.Repeat(`,{"host":"a.b"}`, 9999) + `]}`, status: 400, want: says(`"allow" has more than 1000 elements`)},
		{name: "set, no range", method: "PUT", path: path, body: `{"allow":[{"cidr":"203.0.113.0/33"}]}`, status: 400, want: says(`egress: rule 1: "203.0.113.0/33" is no range of addresses; one is like "203.0.113.0/24"`)},
		{name: "set, IPv4 as IPv6", method: "PUT", path: path, body: `{"allow":[{"cidr":"::ffff:10.0.0.1"}]}`, status: 400, want: says(`egress: rule 1: "::ffff:10.0.0.1" is IPv4 written as IPv6; write it as IPv4`)},
		{name: "set, 256 KiB", method: "PUT", path: path, body: padded(`{"allow":[]}`, 256<<10), status: 200, want: `{"allow":[]}`},
		{name: "set, over 256 KiB", method: "PUT", path: path, body: padded(`{"allow":[]}`, 256<<10+1), status: 413, want: `{"error":"request body too large: the limit is 262144 bytes","code":"too_large"}`},
		{name: "set, too deep", method: "PUT", path: path, body: `{"allow":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, status: 400, want: says("the request body is nested too deeply")},

		{name: "get", method: "GET", path: path, engine: &fakeEngine{egress: &issuedPolicy}, status: 200, want: issued},
		{name: "get, no interface", method: "GET", path: path, status: 409, want: noEgress},
		{name: "get, unknown id", method: "GET", path: unknown, status: 404, want: notFound},
		{name: "denials", method: "GET", path: path + "/denials", engine: &fakeEngine{egress: &issuedPolicy, denied: refused}, status: 200, want: `{"denials":` + refusedJSON + `}`},
		{name: "no denials", method: "GET", path: path + "/denials", engine: &fakeEngine{egress: &issuedPolicy}, status: 200, want: `{"denials":[]}`},
		{name: "denials, no interface", method: "GET", path: path + "/denials", status: 409, want: noEgress},
		{name: "denials, malformed id", method: "GET", path: "/sandboxes/x/egress/denials", status: 404, want: notFound},

		{name: "create", method: "POST", path: "/sandboxes", body: `{"egress":` + issued + `}`, status: 201, want: `{"id":"sb_a1b2c3d4e5f6"}`},
		{name: "create, empty", method: "POST", path: "/sandboxes", body: `{"egress":{}}`, status: 400, want: says(`missing field "egress.allow"`)},
		{name: "create, unknown field", method: "POST", path: "/sandboxes", body: `{"egress":{"allow":[{"prot":"tcp"}]}}`, status: 400, want: says(`unknown field "egress.allow[0].prot"`)},
		{name: "create, no object", method: "POST", path: "/sandboxes", body: `{"egress":[]}`, status: 400, want: invalid},
		{name: "create, switched off", method: "POST", path: "/sandboxes", body: `{"egress":` + issued + `}`, engine: &fakeEngine{err: sandbox.NoEgress("off")}, status: 409, want: `{"error":"off","code":"no_egress"}`},
		{name: "exec", method: "POST", path: "/sandboxes/" + knownID + "/exec", body: `{"code":"1"}`, engine: &fakeEngine{result: sandbox.ExecResult{EgressDenied: refused}}, status: 200,
			want: `{"stdout":"","stderr":"","exit_code":0,"duration_ms":0,"duration_us":0,"start":"cold","egress_denied":` + refusedJSON + `,"exec_id":"ex_0123456789ab"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := tt.engine
			if e == nil {
				e = &fakeEngine{}
			}
			rec := request(t, newAPI(e), tt.method, tt.path, tt.body)
			if got := strings.TrimSuffix(rec.Body.String(), "\n"); rec.Code != tt.status || got != tt.want {
				t.Errorf("status %d, want %d\ngot  %s\nwant %s", rec.Code, tt.status, got, tt.want)
			}
		})
	}
}

func TestEgressOfACreateRequest(t *testing.T) {
	e := &fakeEngine{}
	request(t, newAPI(e), "POST", "/sandboxes", `{"egress":`+issued+`}`)
	if !reflect.DeepEqual(e.spec.Egress, &issuedPolicy) {
		t.Errorf("asked for was %+v", e.spec.Egress)
	}
	for _, body := range []string{`{}`, `{"egress":null}`} {
		if request(t, newAPI(e), "POST", "/sandboxes", body); e.spec.Egress != nil {
			t.Errorf("%s asked for %+v", body, e.spec.Egress)
		}
	}
	rec := request(t, newAPI(&fakeEngine{egress: &issuedPolicy}), "GET", "/sandboxes/"+knownID, "")
	if !strings.HasSuffix(rec.Body.String(), `,"egress":`+issued+"}\n") {
		t.Errorf("described as %s", rec.Body)
	}
}

// An exec, or an event, says what was refused.
func TestDenialsAreDescribed(t *testing.T) {
	ended := runningExec
	ended.EgressDenied = refused
	text, err := json.Marshal(describeExec(ended))
	if err != nil || !strings.Contains(string(text), `"egress_denied":`+refusedJSON) {
		t.Errorf("an exec: %s, %v", text, err)
	}
	event := telemetry.Record{Event: sandbox.Event{Kind: sandbox.EventEgressDenied, Reason: "no_rule", Denied: &refused[1]}}
	text, err = json.Marshal(describeEvent(event))
	if err != nil || !strings.Contains(string(text), `"event":"egress_denied"`) ||
		!strings.Contains(string(text), `"egress_denied":{"addr":"169.254.169.254","port":80,"protocol":"tcp","reason":"forbidden_address","count":1}`) {
		t.Errorf("an event: %s, %v", text, err)
	}
}
