package real

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/testenv/internet"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// measuring prints what a flow costs: a connection until its first line, a line and
// its echo, bytes in both directions, and a name.
const measuring = `
def median(f, n):
    took = []
    for _ in range(n):
        began = time.perf_counter()
        f()
        took.append(time.perf_counter() - began)
    return sorted(took)[n // 2] * 1e6
def connection():
    with connect(HOST, 9000) as s:
        s.recv(100)
s = connect(HOST, 9000)
f = s.makefile("rb")
f.readline()
def echo():
    s.sendall(b"anybody there?\n")
    f.readline()
def down():
    s.sendall(b"send %d\n" % SIZE)
    left = SIZE
    while left:
        left -= len(s.recv(min(left, 1 << 18)))
def up():
    s.sendall(b"take %d\n" % SIZE)
    part = bytes(1 << 18)
    for _ in range(SIZE >> 18):
        s.sendall(part)
    f.readline()
SIZE = 16 << 20
out = {"connection": median(connection, 40), "echo": median(echo, 200), "name": median(lambda: dns("api.example.org"), 40)}
out["down"] = SIZE / median(down, 3)
out["up"] = SIZE / median(up, 3)
print(json.dumps(out))
`

// flowCost is what [measuring] prints: microseconds, and bytes a microsecond.
type flowCost struct{ Connection, Echo, Name, Down, Up float64 }

func (c flowCost) String() string {
	return fmt.Sprintf("connection %.0f µs, echo %.0f µs, name %.0f µs, down %.1f MB/s, up %.1f MB/s", c.Connection, c.Echo, c.Name, c.Down, c.Up)
}

func (h *host) measureFlow(t *testing.T, id string) (c flowCost) {
	t.Helper()
	res, err := h.Exec(t.Context(), id, client.Program{Code: tries + strings.ReplaceAll(measuring, "HOST", `"198.51.100.1"`), Timeout: 20 * time.Minute})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%s%s, %v", res.Stderr, res.Err, err)
	}
	if err := json.Unmarshal(res.Stdout, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// measureDirect measures the same path from the host, without emberd.
func measureDirect(t *testing.T) (c flowCost) {
	t.Helper()
	timed := func(n int, f func() error) float64 {
		var took []time.Duration
		for range n {
			began := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
		return float64(median(took).Nanoseconds()) / 1e3
	}
	dial := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", "198.51.100.1:9000")
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReaderSize(conn, 1<<18)
		if _, err := in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		return conn, in
	}
	c.Connection = timed(40, func() error { conn, _ := dial(); return conn.Close() })
	conn, in := dial()
	defer conn.Close()
	say := func(format string, a ...any) error { _, err := fmt.Fprintf(conn, format, a...); return err }
	c.Echo = timed(200, func() error { _ = say("anybody there?\n"); _, err := in.ReadString('\n'); return err })
	c.Name = timed(40, func() error {
		_, err := dns.Exchange(new(dns.Msg).SetQuestion("api.example.org.", dns.TypeA), internet.Resolver.String())
		return err
	})
	const size = 16 << 20
	c.Down = size / timed(3, func() error { _ = say("send %d\n", size); _, err := io.CopyN(io.Discard, in, size); return err })
	c.Up = size / timed(3, func() error {
		_ = say("take %d\n", size)
		if _, err := conn.Write(make([]byte, size)); err != nil {
			return err
		}
		_, err := in.ReadString('\n')
		return err
	})
	return c
}

// rulesOf is a policy of so many rules, half of them for names, of which the last
// two are used.
func rulesOf(n int) rest.EgressRequest {
	p := rest.EgressRequest{Allow: []rest.EgressRuleRequest{}}
	for i := range n - 2 {
		if i%2 == 0 {
			p.Allow = append(p.Allow, rest.EgressRuleRequest{Host: fmt.Sprintf("host-%d.example.net", i)})
		} else {
			p.Allow = append(p.Allow, rest.EgressRuleRequest{CIDR: fmt.Sprintf("8.%d.%d.0/24", i/250, i%250), Ports: []int{443, 5432}})
		}
	}
	return rest.EgressRequest{Allow: append(p.Allow,
		rest.EgressRuleRequest{CIDR: "198.51.100.0/24"}, rest.EgressRuleRequest{Host: "api.example.org"})}
}

// What egress costs: to make, to change, for each flow, for each rule, for each
// sandbox. It measures where -long is given, and asserts nothing.
func TestEgressCosts(t *testing.T) {
	n := newInternet(t)
	if !*long {
		t.Skip("measures for minutes; run with -long")
	}
	n.Host("api.example.org", "203.0.113.10")
	h := newHost(t, patient, online, func(c *daemon.Config) {
		c.Templates, c.Shells = true, 2
		c.Capacity.MemoryMiB = 1 << 14 // promised to 32 that use little of it
	})
	for _, egress := range []bool{false, true} {
		if _, err := h.BuildTemplate(t.Context(), rest.TemplateRequest{LanguagePack: "python", Egress: egress}); err != nil {
			t.Fatal(err)
		}
	}
	create := func(options ...client.CreateOption) (string, time.Duration) {
		t.Helper()
		time.Sleep(time.Second) // for the shells that are made behind
		began := time.Now()
		id, err := h.Create(t.Context(), "python", append(options, client.WithBootPath("restore"))...)
		if err != nil {
			t.Fatal(err)
		}
		return id, time.Since(began)
	}
	creates := func(options ...client.CreateOption) time.Duration {
		t.Helper()
		var all []time.Duration
		for range 11 {
			id, took := create(options...)
			all = append(all, took)
			if err := h.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		return median(all)
	}
	direct := measureDirect(t)
	t.Logf("without emberd: %v", direct)
	without := creates()
	t.Logf("create by restore, without egress: %v", without)
	for _, rules := range []int{2, 100, 1000} {
		begin := client.WithEgress(rulesOf(min(rules, 100))) // what a create request has room for
		took := creates(begin)
		id, _ := create(begin)
		var puts []time.Duration
		for range 5 {
			began := time.Now()
			if _, err := h.SetEgress(t.Context(), id, rulesOf(rules)); err != nil {
				t.Fatal(err)
			}
			puts = append(puts, time.Since(began))
		}
		c := h.measureFlow(t, id)
		t.Logf("%d rules: create %v (%.2f times without egress), PUT %v; %v", rules, took, float64(took)/float64(without), median(puts), c)
		if rules == 2 {
			t.Logf("against without emberd: connection %+.0f µs, echo %+.0f µs, name %+.0f µs, down %.2f, up %.2f", c.Connection-direct.Connection, c.Echo-direct.Echo, c.Name-direct.Name, c.Down/direct.Down, c.Up/direct.Up)
		}
		if err := h.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for _, crowd := range []int{1, 8, 32} {
		var last time.Duration
		for len(ids) < crowd {
			id, took := create(client.WithEgress(rulesOf(2)))
			ids, last = append(ids, id), took
		}
		rss, err := oracle.RSS(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		own := 0
		for _, id := range ids {
			own += pss(t, h.vmm(t, id))
		}
		t.Logf("%d sandboxes: the last create %v, daemon %d MiB, %d descriptors, PSS %d KiB each; %v", crowd, last, rss>>20, openFiles(t), own/crowd, h.measureFlow(t, ids[0]))
	}
}
