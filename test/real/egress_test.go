package real

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/testenv/internet"
)

//go:embed testdata/egress.py
var tries string

// online is a daemon that asks the test's internet for names.
func online(c *daemon.Config) { c.Egress.DNS = []netip.AddrPort{internet.Resolver} }

// policy reads a policy.
func policy(t testing.TB, rules string) rest.EgressRequest {
	t.Helper()
	var p rest.EgressRequest
	if err := json.Unmarshal([]byte(`{"allow": `+rules+`}`), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// try has a program in a sandbox try some things, and returns how each went.
func try(t testing.TB, c *client.Client, id string, ca []byte, ops ...op) ([]string, client.Result) {
	t.Helper()
	all := make([][]any, len(ops))
	for i, o := range ops {
		all[i] = []any{o.name, o.args}
	}
	quote := func(v any) string { // JSON within a string of Python's
		inner, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		outer, _ := json.Marshal(string(inner))
		return string(outer)
	}
	code := fmt.Sprintf("%s\nmain(json.loads(%s), json.loads(%s))\n", tries, quote(all), quote(string(ca)))
	res, err := c.Exec(t.Context(), id, client.Program{Code: code, Timeout: 20 * time.Minute})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("exit %d, %s%s, %v", res.ExitCode, res.Stderr, res.Err, err)
	}
	var outcomes []string
	if err := json.Unmarshal(res.Stdout, &outcomes); err != nil || len(outcomes) != len(ops) {
		t.Fatalf("%d outcomes of %d: %q, %v", len(outcomes), len(ops), res.Stdout, err)
	}
	return outcomes, res
}

// denialText is what a denial says, as in [trial].denied.
func denialText(d rest.EgressDenial) string {
	text := d.Reason + " " + d.Protocol + " "
	if d.Host == "" {
		d.Host = "-"
	}
	text += d.Host
	switch {
	case d.Addr == "":
	case d.Port == 0:
		text += " " + d.Addr
	default:
		addr, err := netip.ParseAddr(d.Addr)
		if err != nil {
			return text + " " + err.Error()
		}
		text += " " + netip.AddrPortFrom(addr, uint16(d.Port)).String()
	}
	return text
}

// isDenied tells whether a denial like that is among some.
func isDenied(denials []rest.EgressDenial, like string) bool {
	want := strings.Fields(like)
	return slices.ContainsFunc(denials, func(d rest.EgressDenial) bool {
		got := strings.Fields(denialText(d))
		for i, w := range want {
			switch {
			case w == "*":
			case i >= len(got) || got[i] != w:
				return false
			}
		}
		return true
	})
}

func listDenials(denials []rest.EgressDenial) string {
	var b strings.Builder
	for _, d := range denials {
		rule := "none"
		if d.Rule != nil {
			raw, _ := json.Marshal(d.Rule)
			rule = string(raw)
		}
		fmt.Fprintf(&b, "  %s, %d times; rule: %s\n", denialText(d), d.Count, rule)
	}
	return b.String()
}

// What works with a rule works, and is refused and named without it; and nothing
// is sent to anybody that no rule is for.
func TestEgress(t *testing.T) {
	n := newInternet(t)
	scripts := trialScripts()
	for name, s := range scripts {
		n.Script(name, s)
	}
	h := newHost(t, patient, online)
	open := policy(t, trialRules)
	id, err := h.Create(t.Context(), "python", client.WithEgress(open))
	if err != nil {
		t.Fatal(err)
	}
	var ops []op
	for _, tr := range trials() {
		ops = append(ops, tr.good, tr.bad)
	}
	began := time.Now()
	outcomes, res := try(t, h.Client, id, n.CA.PEM(), ops...)
	t.Logf("%d trials in %v", len(ops), time.Since(began))
	checkTrials(t, n, outcomes, res.EgressDenied)
	checkSent(t, n, open, scripts)

	t.Run("nothing is allowed", func(t *testing.T) { checkShut(t, n, h, id) })
	t.Run("what was denied is asked for", func(t *testing.T) { checkAsking(t, n, h, id) })
	t.Run("forbidden addresses", func(t *testing.T) { checkForbidden(t, n, h, id) })
	t.Run("flows are cut", func(t *testing.T) { checkFlowsEnd(t, n, h, id) })
	t.Run("what is said of it", func(t *testing.T) { checkSaid(t, h) })
	// Last, as the kernel keeps no more denials apart than a scan of ports has.
	t.Run("the host", func(t *testing.T) { checkHost(t, n, h, id) })
}

// checkTrials compares the outcomes of the trials, two for each, with what they
// are to be.
func checkTrials(t *testing.T, n *internet.Internet, outcomes []string, denials []rest.EgressDenial) {
	t.Helper()
	var heard []string
	for _, v := range n.Visits() {
		if v.Over == "tls" {
			heard = append(heard, v.Host+" "+v.At.String())
		}
	}
	wrong := 0
	for i, tr := range trials() {
		good, bad := outcomes[2*i], outcomes[2*i+1]
		if !regexp.MustCompile(tr.want).MatchString(good) || tr.good.heard != "" && !slices.Contains(heard, tr.good.heard) {
			t.Errorf("%s: %q, want %s; heard %q", tr.name, good, tr.want, tr.good.heard)
			wrong++
		}
		if !regexp.MustCompile(tr.fails).MatchString(bad) {
			t.Errorf("%s: what is refused has the outcome %q, want %s", tr.name, bad, tr.fails)
			wrong++
		}
		if tr.denied != "*" && !isDenied(denials, tr.denied) {
			t.Errorf("%s: %q is not among what was denied", tr.name, tr.denied)
			wrong++
		}
	}
	for _, d := range denials {
		if d.Reason == "no_rule" && d.Rule == nil && (d.Protocol == "tcp" || d.Protocol == "udp") {
			t.Errorf("%s: no rule is named", denialText(d))
		}
	}
	if wrong > 0 {
		t.Logf("denied:\n%s", listDenials(denials))
	}
}

// model is a policy, as simple as can be.
type model struct {
	rules   []rest.EgressRuleRequest
	scripts map[string]internet.Script
}

// names tells whether a rule is for a name.
func (m model) names(rule rest.EgressRuleRequest, name string) bool {
	host := strings.TrimSuffix(strings.ToLower(rule.Host), ".")
	if below, ok := strings.CutPrefix(host, "*"); ok {
		return strings.HasSuffix(name, below)
	}
	return host == name || host == "bücher.example" && name == "xn--bcher-kva.example"
}

// address is what a record of an address says.
var address = regexp.MustCompile(` IN A (\S+)$`)

// flows are where a rule lets packets go, by address; those for ranges not among
// them.
func (m model) flows() map[internet.Flow]bool {
	flows := map[internet.Flow]bool{}
	for name, script := range m.scripts {
		for turn := range 3 {
			for _, line := range script(internet.Question{Type: "A", Time: turn + 1}).Records {
				found := address.FindStringSubmatch(line)
				if found == nil || !netip.MustParsePrefix("203.0.113.0/24").Contains(netip.MustParseAddr(found[1])) {
					continue
				}
				for _, rule := range m.rules {
					if rule.Host == "" || !m.names(rule, name) {
						continue
					}
					ports := rule.Ports
					if len(ports) == 0 {
						ports = []int{80, 443}
					}
					for _, port := range ports {
						to := netip.AddrPortFrom(netip.MustParseAddr(found[1]), uint16(port))
						flows[internet.Flow{Protocol: cmp.Or(rule.Protocol, "tcp"), To: to}] = true
					}
				}
			}
		}
	}
	return flows
}

// ranges tells whether a rule for a range lets packets go there.
func (m model) ranges(f internet.Flow) bool {
	return slices.ContainsFunc(m.rules, func(r rest.EgressRuleRequest) bool {
		if r.CIDR == "" || cmp.Or(r.Protocol, "tcp") != f.Protocol || f.To.Addr() == internet.Here {
			return false
		}
		return netip.MustParsePrefix(r.CIDR).Contains(f.To.Addr()) && (len(r.Ports) == 0 || slices.Contains(r.Ports, int(f.To.Port())))
	})
}

// checkSent fails the test if the host sent anything that the policy does not
// allow, asked for a name that is not on it, or named one.
func checkSent(t *testing.T, n *internet.Internet, p rest.EgressRequest, scripts map[string]internet.Script) {
	t.Helper()
	m := model{p.Allow, scripts}
	flows := m.flows()
	for f, packets := range n.Sent() {
		if f.To != internet.Resolver && !flows[f] && !m.ranges(f) {
			t.Errorf("%d packets were sent to %v", packets, f)
		}
	}
	allowed := func(name string) bool {
		return slices.ContainsFunc(p.Allow, func(r rest.EgressRuleRequest) bool { return r.Host != "" && m.names(r, name) })
	}
	for _, q := range n.Asked() {
		if name := strings.TrimSuffix(q.Name, "."); !allowed(name) && q.Over != "tls" || q.Type != "A" && q.Over != "tls" {
			t.Errorf("%s was asked for, by %s: %s", name, q.Over, q.Type)
		}
	}
	for _, v := range n.Visits() {
		host, _, _ := strings.Cut(v.Host, ":")
		byName := v.At.Port() == 443 && v.Over == "tls" || v.At.Port() == 80 && v.Over == "http"
		if byName && !allowed(strings.ToLower(host)) && !m.ranges(internet.Flow{Protocol: "tcp", To: v.At}) {
			t.Errorf("%s was asked for %q", v.At, v.Host)
		}
	}
}

// Nothing that works before works with a policy that allows nothing, and all of it
// is named. Nobody is asked for anything.
func checkShut(t *testing.T, n *internet.Internet, h *host, id string) {
	if _, err := h.SetEgress(t.Context(), id, policy(t, "[]")); err != nil {
		t.Fatal(err)
	}
	n.Forget()
	var ops []op
	wanted := map[string]bool{}
	for _, tr := range trials() {
		if slices.ContainsFunc(ops, func(o op) bool { return fmt.Sprint(o) == fmt.Sprint(tr.good) }) {
			continue
		}
		ops = append(ops, tr.good)
		name, _ := tr.good.args["host"].(string)
		if name == "" {
			name, _ = tr.good.args["name"].(string)
		}
		if _, err := netip.ParseAddr(name); err != nil && tr.good.args["server"] == nil {
			wanted["no_rule dns "+strings.TrimSuffix(strings.ToLower(name), ".")+" *"] = true
		}
	}
	outcomes, res := try(t, h.Client, id, n.CA.PEM(), ops...)
	for i, o := range ops {
		if regexp.MustCompile(`^ok (NOERROR|\d|hello)`).MatchString(outcomes[i]) {
			t.Errorf("%v still works: %s", o, outcomes[i])
		}
	}
	for like := range wanted {
		if !isDenied(res.EgressDenied, like) {
			t.Errorf("%q is not among what was denied", like)
		}
	}
	if sent := n.Sent(); len(sent) > 0 {
		t.Errorf("nothing is allowed, and %v was sent", slices.Collect(maps.Keys(sent)))
	}
	if t.Failed() {
		t.Logf("denied:\n%s", listDenials(res.EgressDenied))
	}
}

// An agent that asks for what it was denied, in the words of the denial, gets there.
func checkAsking(t *testing.T, n *internet.Internet, h *host, id string) {
	ops := []op{
		httpsOp("www.evil.test"), tcpOp("203.0.113.99", 9000), udpOp("203.0.113.98", 4500), dnsOp("also.evil.test"),
		tcpOp("169.254.169.254", 9000), newOp("ping", args{"address": "203.0.113.97"}),
	}
	asked := policy(t, "[]")
	for round := range 4 {
		outcomes, res := try(t, h.Client, id, n.CA.PEM(), ops...)
		t.Logf("round %d: %q", round, outcomes)
		more := false
		for _, d := range res.EgressDenied {
			if d.Rule == nil {
				continue
			}
			more = true
			asked.Allow = append(asked.Allow, ruleRequest(*d.Rule))
		}
		if more {
			if _, err := h.SetEgress(t.Context(), id, asked); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for i, want := range []string{`^ok 200 .* of www.evil.test`, `^ok hello`, `^ok 1$`, `^ok NXDOMAIN`, isRefused, `^(unreachable|timeout)$`} {
			if !regexp.MustCompile(want).MatchString(outcomes[i]) {
				t.Errorf("%v: %q, want %s", ops[i], outcomes[i], want)
			}
		}
		return
	}
	t.Errorf("there is always more to ask for: %+v", asked)
}

// ruleRequest asks for a rule.
func ruleRequest(r rest.EgressRule) rest.EgressRuleRequest {
	return rest.EgressRuleRequest(r)
}

// isInvalid tells whether a request was refused as one that makes no sense, with
// words that match.
func isInvalid(err error, words string) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Status == 400 && regexp.MustCompile(words).MatchString(e.Message)
}

// isTooLarge tells whether a request was too long for a create, which a policy may
// be that can be set afterwards.
func isTooLarge(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Status == 413
}
