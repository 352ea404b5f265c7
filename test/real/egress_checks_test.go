package real

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/testenv/internet"
)

// forbiddenRanges are what no policy may ask for.
var forbiddenRanges = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.88.99.0/24",
	"192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32", "169.254.169.254/32", "100.100.100.200/32", "10.1.2.3/32",
	"0.0.0.0/0", "8.0.0.0/5", "128.0.0.0/1",
	"::1/128", "::/128", "::/96", "::ffff:0:0/96", "::ffff:10.0.0.1/128", "::ffff:203.0.113.1/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64",
	"2001::/32", "2002::/16", "fc00::/7", "fd00:ec2::254/128", "fe80::/10", "fec0::/10", "ff00::/8", "ff02::1/128", "::/0",
}

// badPolicies are refused, with words that say what is wrong.
var badPolicies = []struct{ rules, words string }{
	{`[{"host": ""}]`, "rule 1"}, {`[{"host": "."}]`, "rule 1"}, {`[{"host": "a..b"}]`, `a\.\.b`}, {`[{"host": "*"}]`, "rule 1"}, {`[{"host": "*.*.example.org"}]`, "rule 1"},
	{`[{"host": "a.*.example.org"}]`, "rule 1"}, {`[{"host": "api.example.org"}, {"host": "-a.example.org"}]`, "rule 2"}, {`[{"host": "a b.example.org"}]`, "rule 1"},
	{`[{"host": "evil\u0000.example.org"}]`, "rule 1"}, {`[{"host": "https://example.org"}]`, "rule 1"}, {`[{"host": "example.org:443"}]`, "rule 1"},
	{`[{"host": "203.0.113.7"}]`, "cidr"}, {`[{"host": "0x7f.1"}]`, "."}, {`[{"host": "2130706433"}]`, "."}, {`[{"host": "localhost"}]`, "rule 1"},
	{`[{"host": "` + strings.Repeat("a", 64) + `.org"}]`, "rule 1"}, {`[{"host": "` + strings.Repeat("a.", 130) + `org"}]`, "rule 1"},
	{`[{"host": "a.org", "ports": [0]}]`, "."}, {`[{"host": "a.org", "ports": [65536]}]`, "."}, {`[{"host": "a.org", "ports": [-1]}]`, "."},
	{`[{"host": "a.org", "protocol": "icmp"}]`, "."}, {`[{"host": "a.org", "cidr": "203.0.113.0/24"}]`, "rule 1"}, {`[{}]`, "rule 1"},
	{`[{"cidr": "203.0.113.0/33"}]`, "."}, {`[{"cidr": "203.0.113"}]`, "."}, {`[{"cidr": "fe80::1%eth0/64"}]`, "."},
	{`[` + strings.Repeat(`{"host":"a.org"},`, 9999) + `{"host":"a.org"}]`, "."},
}

// Nobody gets where nobody may get to, by any protocol, at any port; a policy that
// asks for it is refused, and so is one that makes no sense. The sandbox keeps the
// policy that it has.
func checkForbidden(t *testing.T, n *internet.Internet, h *host, id string) {
	wide := policy(t, `[{"cidr": "203.0.113.0/24"}, {"cidr": "198.51.100.0/24"}, {"cidr": "192.0.2.0/24"}, {"host": "*.example.org", "ports": [80, 443, 9000]}]`)
	kept, err := h.SetEgress(t.Context(), id, wide)
	if err != nil {
		t.Fatal(err)
	}
	n.Forget()
	var ops []op
	for _, a := range internet.Special {
		ops = append(ops, tcpOp(a.String(), 80), tcpOp(a.String(), 9000), bareOp(a.String(), 4500), bareOp(a.String(), 9))
	}
	outcomes, res := try(t, h.Client, id, n.CA.PEM(), ops...)
	for i, o := range ops {
		if !regexp.MustCompile(`^(refused|unreachable|sent|invalid)$`).MatchString(outcomes[i]) {
			t.Errorf("%v: %q", o, outcomes[i])
		}
	}
	for _, a := range internet.Special {
		for _, port := range []int{80, 9000} {
			if a.Is4() && !isDenied(res.EgressDenied, fmt.Sprintf("forbidden_address tcp - %s:%d", a, port)) {
				t.Errorf("%s, port %d is not among what was denied", a, port)
			}
		}
	}
	if sent := n.Sent(); len(sent) > 0 {
		t.Errorf("%v was sent", sent)
	}
	if t.Failed() {
		t.Logf("denied:\n%s", listDenials(res.EgressDenied))
	}
	var bad []struct{ rules, words string }
	for _, r := range forbiddenRanges {
		bad = append(bad, struct{ rules, words string }{`[{"host": "api.example.org"}, {"cidr": "` + r + `"}]`, "."})
	}
	for _, b := range append(bad, badPolicies...) {
		var p rest.EgressRequest
		if err := json.Unmarshal([]byte(`{"allow": `+b.rules+`}`), &p); err != nil {
			t.Fatal(err)
		}
		if _, err := h.SetEgress(t.Context(), id, p); !isInvalid(err, b.words) {
			t.Errorf("%.80s: %v, want it refused with %q", b.rules, err, b.words)
		}
		if id, err := h.Create(t.Context(), "python", client.WithEgress(p)); !isInvalid(err, b.words) && !isTooLarge(err) {
			t.Errorf("%.80s: a sandbox %s, %v, want it refused with %q", b.rules, id, err, b.words)
		}
	}
	if now, err := h.Egress(t.Context(), id); err != nil || fmt.Sprint(now) != fmt.Sprint(kept) {
		t.Errorf("the policy is %+v, %v, was %+v", now, err, kept)
	}
	if list, err := h.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("there are %d sandboxes, %v", len(list), err)
	}
}

// canaries listen on the host where nobody from a sandbox has any business, and
// note who comes.
func canaries(t *testing.T) (tcp, udp int, visitors func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	note := func(from net.Addr) { mu.Lock(); defer mu.Unlock(); seen = append(seen, from.String()) }
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenUDP("udp", &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	var listening sync.WaitGroup
	listening.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			note(conn.RemoteAddr())
			_, _ = conn.Write([]byte("secret\n"))
			_ = conn.Close()
		}
	})
	listening.Go(func() {
		buf := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			note(from)
			_, _ = u.WriteTo([]byte("secret"), from)
		}
	})
	t.Cleanup(func() { l.Close(); u.Close(); listening.Wait() })
	return l.Addr().(*net.TCPAddr).Port, u.LocalAddr().(*net.UDPAddr).Port, func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(seen) }
}

// The host answers nothing, by whichever of its addresses it is asked, whatever the
// policy is, but for names at the gateway; and not where emberd itself listens.
func checkHost(t *testing.T, n *internet.Internet, h *host, id string) {
	tcp, udp, visitors := canaries(t)
	_, text, err := net.SplitHostPort(h.addr)
	if err != nil {
		t.Fatal(err)
	}
	api, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	const gateway = "100.64.0.1"
	var ops []op
	for _, a := range []string{gateway, internet.Here.String(), "127.0.0.1", "0.0.0.0", "192.0.2.1", "::1", internet.Here6.String(), "fd00:656d::1", "100.64.0.0", "100.127.255.255"} {
		ops = append(ops, tcpOp(a, tcp), tcpOp(a, api), udpOp(a, udp))
	}
	last := span(1100, 65535) // with the ports of the relay
	ops = append(ops, newOp("scan", args{"address": gateway, "first": 1, "last": last}), newOp("scan", args{"address": gateway, "first": 1, "last": span(200, 2000), "kind": "udp"}))
	outcomes, _ := try(t, h.Client, id, n.CA.PEM(), ops...)
	for i, o := range ops {
		want := `^(refused|reset|closed|unreachable|timeout|invalid)$`
		if o.name == "scan" {
			want = `^ok open \[(53)?\]$`
		}
		if !regexp.MustCompile(want).MatchString(outcomes[i]) {
			t.Errorf("%v: %q, want %s", o, outcomes[i], want)
		}
	}
	if seen := visitors(); len(seen) > 0 {
		t.Errorf("the host was reached from %q", seen)
	}
}

// holding keeps flows open, and prints when each of them ended, as the host's clock
// has it.
const holding = `
import select
flows = {}
for name, host, port in (("name", "api.example.org", 443), ("web", "web.example.org", 80), ("range", "198.51.100.1", 9000), ("port", "db.example.org", 5432), ("kept", "198.51.100.2", 9000)):
    s = connect(host, port)
    s.settimeout(5)
    if name == "name":
        s = ssl.create_default_context(cafile=CA).wrap_socket(s, server_hostname=host)
    if name == "web":
        s.sendall(b"GET /bytes?n=1000000000 HTTP/1.1\r\nHost: web.example.org\r\n\r\n")
        s.recv(100)
    flows[name] = s
    print("open", name, flush=True)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(1)
u.connect(("198.51.100.20", 4500))
u.send(b"x")
u.recv(10)
print("holding", flush=True)
until, ended = time.monotonic() + 40, set()
while time.monotonic() < until and len(ended) < len(flows):
    for name, s in flows.items():
        if name in ended:
            continue
        try:
            if name in ("range", "port", "kept"):
                s.sendall(b"still there?\n")
            s.settimeout(0.1)
            if not s.recv(65536):
                raise ConnectionError("closed")
        except TimeoutError:
            pass
        except OSError as e:
            ended.add(name)
            print("ended", name, time.time(), flush=True)
    if ended >= {"name", "web", "range", "port"} and time.monotonic() < until - 3:
        until = time.monotonic() + 3
try:
    u.send(b"x")
    print("datagrams", u.recv(10), flush=True)
except OSError as e:
    print("datagrams", reason(e), flush=True)
print("at the end", sorted(ended), flush=True)
`

// Flows that a new policy does not allow end within two seconds of it, those that
// it allows go on, and what was open before is not open any more.
func checkFlowsEnd(t *testing.T, n *internet.Internet, h *host, id string) {
	n.Host("api.example.org", "203.0.113.10")
	if _, err := h.SetEgress(t.Context(), id, policy(t, trialRules)); err != nil {
		t.Fatal(err)
	}
	h.run(t, id, fmt.Sprintf("open('/tmp/ca.pem', 'w').write(%q)", n.CA.PEM()))
	ex, err := h.StartExec(t.Context(), id, client.Program{Code: tries + holding, Timeout: 5 * time.Minute}, false)
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Output(t.Context(), id, ex, client.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	lines := newLines(out)
	if !lines.await(t, "holding", 2*time.Minute) {
		t.Fatalf("the flows do not open: %s", lines.all())
	}
	began := time.Now()
	if _, err := h.SetEgress(t.Context(), id, policy(t, `[{"cidr": "198.51.100.2/32", "ports": [9000]}]`)); err != nil {
		t.Fatal(err)
	}
	answered := time.Now()
	if !lines.await(t, "at the end", 2*time.Minute) {
		t.Errorf("the flows do not end")
	}
	for _, name := range []string{"name", "web", "range", "port"} {
		found := regexp.MustCompile(`(?m)^ended ` + name + ` ([0-9.]+)$`).FindStringSubmatch(lines.all())
		if found == nil {
			t.Errorf("the flow %q goes on", name)
			continue
		}
		seconds, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		took := time.UnixMicro(int64(seconds * 1e6)).Sub(began)
		t.Logf("the flow %q ended %v after the request, which took %v", name, took.Round(time.Millisecond), answered.Sub(began).Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("the flow %q ended after %v", name, took)
		}
	}
	if all := lines.all(); !strings.Contains(all, "at the end ['name', 'port', 'range', 'web']") || !strings.Contains(all, "datagrams refused") && !strings.Contains(all, "datagrams timeout") && !strings.Contains(all, "datagrams unreachable") {
		t.Errorf("what was seen:\n%s", all)
	}
	n.Forget()
	// Without asking again, as a program does that remembers addresses.
	ops := []op{httpsOp("203.0.113.10", args{"sni": "api.example.org"}), tcpOp("203.0.113.16", 5432), tcpOp("198.51.100.1", 9000), udpOp("198.51.100.20", 4500)}
	outcomes, _ := try(t, h.Client, id, n.CA.PEM(), append(ops, tcpOp("198.51.100.2", 9000))...)
	for i, o := range ops {
		if !regexp.MustCompile(isRefused).MatchString(outcomes[i]) {
			t.Errorf("%v: %q", o, outcomes[i])
		}
	}
	if got := outcomes[len(ops)]; !strings.HasPrefix(got, "ok hello") {
		t.Errorf("what is allowed has the outcome %q", got)
	}
	for f := range n.Sent() {
		if f.To != netip.MustParseAddrPort("198.51.100.2:9000") {
			t.Errorf("%v was sent", f)
		}
	}
}

// What was refused is said alike wherever it is said: in the result of the program,
// in the list of denials, in an event, in a metric.
//
// The sandbox is one that was refused nothing before: of those that were refused
// much, events tell less.
func checkSaid(t *testing.T, h *host) {
	id, err := h.Create(t.Context(), "python", client.WithEgress(policy(t, `[{"host": "api.example.org"}]`)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := make(chan string, 100)
	go func() {
		defer close(told)
		for event, err := range h.Follow(ctx, "") {
			if err != nil {
				return
			}
			if event.Event.Event == "egress_denied" && event.EgressDenied != nil && event.SandboxID == id {
				told <- denialText(*event.EgressDenied)
			}
		}
	}()
	before, err := h.EgressDenials(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	const said = "no_rule tcp - 203.0.113.251:7777"
	if isDenied(before, said) {
		t.Errorf("%s is there before it happened", said)
	}
	_, res := try(t, h.Client, id, nil, tcpOp("203.0.113.251", 7777), tcpOp("203.0.113.251", 7777), tcpOp("203.0.113.251", 7777))
	if len(res.EgressDenied) != 1 || !isDenied(res.EgressDenied, said) || res.EgressDenied[0].Count != 3 {
		t.Errorf("the result says\n%s", listDenials(res.EgressDenied))
	}
	quiet := h.exec(t, id, "print(1)")
	if len(quiet.EgressDenied) > 0 {
		t.Errorf("a program that reaches for nothing is told\n%s", listDenials(quiet.EgressDenied))
	}
	after, err := h.EgressDenials(t.Context(), id)
	if err != nil || !isDenied(after, said) {
		t.Errorf("%v, the list says\n%s", err, listDenials(after))
	}
	wait := time.After(20 * time.Second)
	for found := false; !found; {
		select {
		case text, ok := <-told:
			if found = text == said; !ok {
				t.Fatal("the events ended")
			}
		case <-wait:
			t.Fatal("no event says so")
		}
	}
	metrics, err := h.Metrics(t.Context())
	if err != nil || !regexp.MustCompile(`(?m)^emberd_egress_\w+\{.*reason="no_rule".*\} [1-9]`).Match(metrics) {
		t.Errorf("no metric says so, %v:\n%s", err, regexp.MustCompile(`(?m)^.*egress.*$`).FindAll(metrics, -1))
	}
}

// exec runs code, however it ends.
func (h *host) exec(t *testing.T, id, code string) client.Result {
	t.Helper()
	res, err := h.Exec(t.Context(), id, client.Program{Code: code})
	if err != nil {
		t.Fatal(err)
	}
	return res
}
