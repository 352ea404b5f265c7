package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/api/rest"
)

func TestParseAllow(t *testing.T) {
	for text, want := range map[string]rest.EgressRuleRequest{
		"pypi.org":                 {Host: "pypi.org"},
		"*.example.com":            {Host: "*.example.com"},
		"pypi.org:443":             {Host: "pypi.org", Ports: []int{443}},
		"pypi.org:443,8443":        {Host: "pypi.org", Ports: []int{443, 8443}},
		"pypi.org:443/tcp":         {Host: "pypi.org", Ports: []int{443}, Protocol: "tcp"},
		"ntp.example.org:123/udp":  {Host: "ntp.example.org", Ports: []int{123}, Protocol: "udp"},
		"ntp.example.org/udp":      {Host: "ntp.example.org", Protocol: "udp"},
		"203.0.113.7":              {CIDR: "203.0.113.7"},
		"203.0.113.7:22":           {CIDR: "203.0.113.7", Ports: []int{22}},
		"203.0.113.0/24":           {CIDR: "203.0.113.0/24"},
		"203.0.113.0/24:5432":      {CIDR: "203.0.113.0/24", Ports: []int{5432}},
		"203.0.113.0/24:53/udp":    {CIDR: "203.0.113.0/24", Ports: []int{53}, Protocol: "udp"},
		"2001:db8::1":              {CIDR: "2001:db8::1"},
		"2001:db8::/32":            {CIDR: "2001:db8::/32"},
		"2001:db8::/32/udp":        {CIDR: "2001:db8::/32", Protocol: "udp"},
		"[2001:db8::1]:443":        {CIDR: "2001:db8::1", Ports: []int{443}},
		"[2001:db8::/32]:443,80":   {CIDR: "2001:db8::/32", Ports: []int{443, 80}},
		"[2001:db8::1]":            {CIDR: "2001:db8::1"},
		"bücher.example":           {Host: "bücher.example"},
		"203.0.113.0/33":           {Host: "203.0.113.0/33"}, // which the daemon refuses
		"http://example.org:8080/": {},
		"pypi.org:":                {},
		"pypi.org:0":               {},
		"pypi.org:65536":           {},
		"pypi.org:https":           {},
		"pypi.org:443,":            {},
		"pypi.org:-1":              {},
		"":                         {},
		":443":                     {},
		"/udp":                     {},
		"[pypi.org]:443":           {},
		"[2001:db8::1":             {},
		"[2001:db8::1]443":         {},
	} {
		got, err := parseAllow(text)
		refused := reflect.DeepEqual(want, rest.EgressRuleRequest{})
		if (err != nil) != refused || !refused && !reflect.DeepEqual(got, want) {
			t.Errorf("parseAllow(%q) = %+v, %v", text, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "--allow") {
			t.Errorf("%q is refused with %v", text, err)
		}
	}
}

// What is said to allow something does, when it is given to --allow.
func TestAllowOf(t *testing.T) {
	for want, rule := range map[string]rest.EgressRule{
		"pypi.org":                 {Host: "pypi.org", Ports: []int{80, 443}, Protocol: "tcp"},
		"pypi.org:443":             {Host: "pypi.org", Ports: []int{443}, Protocol: "tcp"},
		"'*.example.com'":          {Host: "*.example.com", Ports: []int{80, 443}, Protocol: "tcp"},
		"pypi.org:80,443/udp":      {Host: "pypi.org", Ports: []int{80, 443}, Protocol: "udp"},
		"203.0.113.7/32:22":        {CIDR: "203.0.113.7/32", Ports: []int{22}, Protocol: "tcp"},
		"203.0.113.0/24":           {CIDR: "203.0.113.0/24", Protocol: "tcp"},
		"'[2001:db8::/32]:53/udp'": {CIDR: "2001:db8::/32", Ports: []int{53}, Protocol: "udp"},
		"2001:db8::/32":            {CIDR: "2001:db8::/32", Protocol: "tcp"},
	} {
		got := allowOf(rule)
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		back, err := parseAllow(strings.Trim(got, "'"))
		if err != nil {
			t.Fatal(err)
		}
		if back.Protocol == "" {
			back.Protocol = "tcp"
		}
		if back.Ports == nil && back.Host != "" {
			back.Ports = []int{80, 443}
		}
		if !reflect.DeepEqual(rest.EgressRule(back), rule) {
			t.Errorf("%s means %+v, not %+v", got, back, rule)
		}
	}
}

// egressDaemon answers as one that has egress, and keeps what it was asked.
type egressDaemon struct {
	asked  []string
	policy string
	exec   string
}

const deniedJSON = `[{"host":"pypi.org","protocol":"dns","reason":"no_rule","rule":{"host":"pypi.org","ports":[80,443],"protocol":"tcp"},"count":2},` +
	`{"addr":"169.254.169.254","port":80,"protocol":"tcp","reason":"forbidden_address","count":1},` +
	`{"host":"evil.test","addr":"203.0.113.7","port":443,"protocol":"tcp","reason":"name_not_allowed","rule":{"host":"evil.test","ports":[443],"protocol":"tcp"},"count":1},` +
	`{"addr":"2001:db8::1","port":53,"protocol":"udp","reason":"no_rule","rule":{"cidr":"2001:db8::1/128","ports":[53],"protocol":"udp"},"count":1}]`

const toldDenied = `emberd refused to resolve pypi.org, 2 times; allow it with --allow pypi.org
emberd refused 169.254.169.254:80: a private or reserved address, or the host's own
emberd refused evil.test:443 (203.0.113.7): the connection was for a name that is not allowed at that address; allow it with --allow evil.test:443
emberd refused [2001:db8::1]:53 (udp); allow it with --allow '[2001:db8::1/128]:53/udp'
`

func (d *egressDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d.asked = append(d.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
	const sb = "/sandboxes/sb_a1b2c3d4e5f6"
	switch r.Method + " " + r.URL.Path {
	case "POST /sandboxes":
		_, _ = io.WriteString(w, `{"id":"sb_a1b2c3d4e5f6"}`)
	case "PUT " + sb + "/egress":
		d.policy = string(body)
		_, _ = w.Write(body)
	case "GET " + sb + "/egress":
		_, _ = io.WriteString(w, d.policy)
	case "GET " + sb + "/egress/denials":
		_, _ = io.WriteString(w, `{"denials":`+deniedJSON+`}`)
	case "POST " + sb + "/exec":
		_, _ = io.WriteString(w, d.exec)
	case "DELETE " + sb:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// ctl runs emberctl against d.
func (d *egressDaemon) ctl(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	srv := httptest.NewServer(d)
	defer srv.Close()
	var out, err bytes.Buffer
	a := &app{stdin: strings.NewReader(`{"allow":[{"host":"from.stdin"}]}`), stdout: &out, stderr: &err}
	status = a.run(t.Context(), append([]string{"--addr", srv.URL}, args...))
	return status, out.String(), err.String()
}

func TestEgressCommands(t *testing.T) {
	const id = "sb_a1b2c3d4e5f6"
	file := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(file, []byte(`{"allow":[{"host":"from.file","ports":[443]}],"total_mib":5}`), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"alow":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const there = `{"allow":[{"host":"there.test","ports":[80,443],"protocol":"tcp"}],"rate_kib_s":7}`
	for _, tt := range []struct {
		name   string
		args   []string
		status int
		asked  []string
		stdout string
		stderr string
	}{
		{name: "set", args: []string{"egress", "set", id, "--allow", "a.b", "--allow", "203.0.113.0/24:5432,22", "--egress-rate", "10"},
			asked:  []string{`PUT /sandboxes/` + id + `/egress {"allow":[{"host":"a.b"},{"cidr":"203.0.113.0/24","ports":[5432,22]}],"rate_kib_s":10}`},
			stdout: "ALLOW           PORTS    PROTOCOL\na.b             all      \n203.0.113.0/24  5432,22  \nat most 10 KiB a second in each direction\n"},
		{name: "set from a file", args: []string{"egress", "set", id, "--file", file, "--json"},
			asked:  []string{`PUT /sandboxes/` + id + `/egress {"allow":[{"host":"from.file","ports":[443]}],"total_mib":5}`},
			stdout: "{\n  \"allow\": [\n    {\n      \"host\": \"from.file\",\n      \"ports\": [\n        443\n      ]\n    }\n  ],\n  \"total_mib\": 5\n}\n"},
		{name: "set from standard input", args: []string{"egress", "set", id, "--file", "-"},
			asked:  []string{`PUT /sandboxes/` + id + `/egress {"allow":[{"host":"from.stdin"}]}`},
			stdout: "ALLOW       PORTS  PROTOCOL\nfrom.stdin  all    \n"},
		{name: "none", args: []string{"egress", "set", id, "--none"},
			asked: []string{`PUT /sandboxes/` + id + `/egress {"allow":[]}`}, stdout: "ALLOW  PORTS  PROTOCOL\n"},
		{name: "one more", args: []string{"egress", "set", id, "--add", "--allow", "a.b:22"},
			asked: []string{`GET /sandboxes/` + id + `/egress`,
				`PUT /sandboxes/` + id + `/egress {"allow":[{"host":"there.test","ports":[80,443],"protocol":"tcp"},{"host":"a.b","ports":[22]}],"rate_kib_s":7}`},
			stdout: "ALLOW       PORTS   PROTOCOL\nthere.test  80,443  tcp\na.b         22      \nat most 7 KiB a second in each direction\n"},
		{name: "show", args: []string{"egress", "show", id}, asked: []string{`GET /sandboxes/` + id + `/egress`},
			stdout: "ALLOW       PORTS   PROTOCOL\nthere.test  80,443  tcp\nat most 7 KiB a second in each direction\n"},
		{name: "denials", args: []string{"egress", "denials", id}, asked: []string{`GET /sandboxes/` + id + `/egress/denials`},
			stdout: "REFUSED                      PROTOCOL  TIMES  REASON             ALLOW\n" +
				"pypi.org                     dns       2      no_rule            --allow pypi.org\n" +
				"169.254.169.254:80           tcp       1      forbidden_address  -\n" +
				"evil.test:443 (203.0.113.7)  tcp       1      name_not_allowed   --allow evil.test:443\n" +
				"[2001:db8::1]:53             udp       1      no_rule            --allow '[2001:db8::1/128]:53/udp'\n"},
		{name: "create", args: []string{"create", "--allow", "a.b:443", "--egress-total", "3"},
			asked: []string{`POST /sandboxes {"egress":{"allow":[{"host":"a.b","ports":[443]}],"total_mib":3}}`}, stdout: id + "\n"},
		{name: "create from a file", args: []string{"create", "--egress", file},
			asked: []string{`POST /sandboxes {"egress":{"allow":[{"host":"from.file","ports":[443]}],"total_mib":5}}`}, stdout: id + "\n"},
		{name: "create without", args: []string{"create"}, asked: []string{`POST /sandboxes {}`}, stdout: id + "\n"},
		{name: "run", args: []string{"run", "--allow", "a.b", "1"}, status: 3, asked: []string{
			`POST /sandboxes {"egress":{"allow":[{"host":"a.b"}]}}`, `POST /sandboxes/` + id + `/exec {"code":"1","stdin":"{\"allow\":[{\"host\":\"from.stdin\"}]}"}`, `DELETE /sandboxes/` + id,
		}, stdout: "out", stderr: "err\n" + toldDenied},
		{name: "exec", args: []string{"exec", id, "1"}, status: 3, asked: []string{
			`POST /sandboxes/` + id + `/exec {"code":"1","stdin":"{\"allow\":[{\"host\":\"from.stdin\"}]}"}`,
		}, stdout: "out", stderr: "err\n" + toldDenied},

		{name: "a file that is none", args: []string{"egress", "set", id, "--file", bad}, status: 1, stderr: `unknown field "alow"`},
		{name: "no file", args: []string{"create", "--egress", file + "x"}, status: 1, stderr: "no such file"},
		{name: "nothing to set", args: []string{"egress", "set", id}, status: 2, stderr: "what may it reach?"},
		{name: "no sandbox", args: []string{"egress", "set", "--none"}, status: 2, stderr: "which sandbox?"},
		{name: "none and some", args: []string{"egress", "set", id, "--none", "--allow", "a.b"}, status: 2, stderr: "--none goes with nothing else"},
		{name: "two ways", args: []string{"create", "--allow", "a.b", "--egress", file}, status: 2, stderr: "give --allow or --egress, not both"},
		{name: "no port", args: []string{"run", "--allow", "a.b:0", "1"}, status: 2, stderr: `"0" is no port; ports go from 1 to 65535`},
		{name: "limits without a policy", args: []string{"create", "--egress-rate", "5"}, status: 2, stderr: "--egress-rate and --egress-total need --allow"},
		{name: "standard input is the program's", args: []string{"run", "--egress", "-", "1"}, status: 2, stderr: "--egress takes a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &egressDaemon{policy: there, exec: `{"stdout":"out","stderr":"err","exit_code":3,"egress_denied":` + deniedJSON + `}`}
			status, stdout, stderr := d.ctl(t, tt.args...)
			if status != tt.status || stdout != tt.stdout || !strings.Contains(stderr, tt.stderr) || tt.status == 0 && stderr != "" {
				t.Errorf("exit status %d, want %d\nstdout %q\nwant   %q\nstderr %q\nwant   %q", status, tt.status, stdout, tt.stdout, stderr, tt.stderr)
			}
			if !slices.Equal(d.asked, tt.asked) {
				t.Errorf("asked was\n%s\nwant\n%s", strings.Join(d.asked, "\n"), strings.Join(tt.asked, "\n"))
			}
		})
	}
}

// With --json what was refused is in the result, and nowhere else.
func TestDeniedAsJSON(t *testing.T) {
	d := &egressDaemon{exec: `{"stdout":"","stderr":"","exit_code":0,"egress_denied":` + deniedJSON + `}`}
	status, stdout, stderr := d.ctl(t, "exec", "--json", "sb_a1b2c3d4e5f6", "1")
	var got, want rest.ExecResult
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(d.exec), &want); err != nil {
		t.Fatal(err)
	}
	if status != 0 || stderr != "" || !reflect.DeepEqual(got.EgressDenied, want.EgressDenied) {
		t.Errorf("exit status %d, stderr %q, %s", status, stderr, stdout)
	}
}

// A program that is refused everything does not fill the terminal.
func TestDeniedIsBounded(t *testing.T) {
	var stderr bytes.Buffer
	a := &app{stderr: &stderr}
	a.tellDenied(make([]rest.EgressDenial, 100))
	if n := strings.Count(stderr.String(), "\n"); n != maxTold+1 || !strings.Contains(stderr.String(), "84 other things") {
		t.Errorf("%d lines: %s", n, stderr.String())
	}
}
