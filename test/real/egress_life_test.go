package real

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/testenv/internet"
	"github.com/emberd/emberd/internal/testenv/oracle"
	"github.com/emberd/emberd/internal/x/fault"
)

// checkQuiet fails the test if anything was sent but names that may be asked for,
// and connections to where they are.
func checkQuiet(t *testing.T, n *internet.Internet, when string, allowed ...string) {
	t.Helper()
	for f, packets := range n.Sent() {
		if !slices.Contains(allowed, f.String()) {
			t.Errorf("%s: %d packets were sent to %v", when, packets, f)
		}
	}
	for _, q := range n.Asked() {
		if q.Name != "api.example.org." {
			t.Errorf("%s: %s was asked for", when, q.Name)
		}
	}
	n.Forget()
}

// toAPI are the flows of a sandbox that may reach api.example.org.
var toAPI = []string{"udp " + internet.Resolver.String(), "tcp 203.0.113.10:443"}

// A guest that floods its network from its first instruction sends nobody anything
// that its policy does not allow: not while it boots, not from a template before it
// has an identity, not while its policy changes, not when the daemon is killed, not
// while there is none, and not when the next one takes over.
func TestEgressFromTheFirstInstruction(t *testing.T) {
	n := newInternet(t)
	n.Host("api.example.org", "203.0.113.10")
	n.Host(floodName, floodUDP.Addr().String())
	data, run := small(t)
	addPack(t, data, "python", "flood", floodPrefix+"/usr/bin/python3")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{
		"--init", self, "--shells", "1", "--pool", "python=0", "--boot-timeout", "4m", "--default-memory", "256", "--on-exit", "keep",
		"--egress-dns", internet.Resolver.String(),
	}
	d := startEmberd(t, data, run, flags...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the first daemon's log:\n%s", d.log)
		}
	})
	open, shut := policy(t, `[{"host": "api.example.org", "ports": [443]}]`), policy(t, `[]`)

	cold, err := d.Create(t.Context(), "flood", client.WithEgress(open), client.WithBootPath("cold-boot"))
	if err != nil {
		t.Fatal(err)
	}
	needFrames(t, d.Client, cold)
	checkQuiet(t, n, "booted")
	checkFlood(t, d.Client, cold)
	checkWorks(t, d.Client, n, cold, true)
	checkQuiet(t, n, "with its policy", toAPI...)

	if _, err := d.BuildTemplate(t.Context(), rest.TemplateRequest{LanguagePack: "flood", Egress: true}); err != nil {
		t.Fatal(err)
	}
	checkQuiet(t, n, "while a template is made")
	ids := []string{cold}
	for range span(1, 3) {
		id, err := d.Create(t.Context(), "flood", client.WithEgress(open), client.WithBootPath("restore"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		checkQuiet(t, n, "restored")
		checkFlood(t, d.Client, id)
		checkWorks(t, d.Client, n, id, true)
		checkQuiet(t, n, "restored, with its policy", toAPI...)
	}
	checkDistinct(t, d.Client, ids)
	for range 3 {
		for _, p := range []rest.EgressRequest{shut, open} {
			if _, err := d.SetEgress(t.Context(), ids[1], p); err != nil {
				t.Fatal(err)
			}
			checkQuiet(t, n, "the policy changes")
		}
	}
	checkWorks(t, d.Client, n, ids[1], true)
	checkQuiet(t, n, "after the changes", toAPI...)
	checkSurvives(t, n, d, flags, ids)
}

// checkSurvives kills the daemon, and has the next one go on, twice.
func checkSurvives(t *testing.T, n *internet.Internet, d *emberd, flags, ids []string) {
	t.Helper()
	rules, policies := map[string]string{}, map[string]string{}
	look := func(id string) (string, string) {
		p, err := d.Egress(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return ruleset(t, d.pid(t, id)), string(raw)
	}
	pids := map[string]int{}
	for _, id := range ids {
		rules[id], policies[id] = look(id)
		checkLastRule(t, rules[id])
		pids[id] = d.pid(t, id)
	}
	for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		n.Forget()
		d.end(t, how)
		time.Sleep(2 * time.Second) // of a flood to nowhere
		checkQuiet(t, n, "without a daemon")
		for _, id := range ids {
			if now := ruleset(t, pids[id]); now != rules[id] {
				t.Errorf("without a daemon the rules of %s are\n%s, were\n%s", id, now, rules[id])
			}
		}
		d = startEmberd(t, d.data, d.run, flags...)
		checkQuiet(t, n, "taken over")
		for _, id := range ids {
			now, policy := look(id)
			if now != rules[id] {
				t.Errorf("%v: the rules of %s are\n%s, were\n%s", how, id, now, rules[id])
			}
			if policy != policies[id] {
				t.Errorf("%v: the policy of %s is %s, was %s", how, id, policy, policies[id])
			}
			checkWorks(t, d.Client, n, id, true)
		}
		checkQuiet(t, n, "after it was taken over", toAPI...)
	}
	if _, err := d.SetEgress(t.Context(), ids[0], policy(t, `[]`)); err != nil {
		t.Fatal(err)
	}
	checkWorks(t, d.Client, n, ids[0], false)
	checkQuiet(t, n, "tightened after all that")
	for _, id := range ids {
		if err := d.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// checkFlood fails the test if a guest does not flood.
func checkFlood(t *testing.T, c *client.Client, id string) {
	t.Helper()
	var denials []rest.EgressDenial
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if denials, err = c.EgressDenials(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if isDenied(denials, "no_rule udp * "+floodUDP.String()) && isDenied(denials, "no_rule tcp * "+floodTCP.String()) && isDenied(denials, "no_rule dns "+floodName) {
			return
		}
	}
	t.Errorf("the guest's flood does not come:\n%s", listDenials(denials))
}

// checkWorks has a program reach what is allowed.
func checkWorks(t *testing.T, c *client.Client, n *internet.Internet, id string, works bool) {
	t.Helper()
	outcomes, res := try(t, c, id, n.CA.PEM(), httpsOp("api.example.org"), httpsOp("203.0.113.200", args{"sni": "api.example.org"}))
	if strings.HasPrefix(outcomes[0], "ok 200 ") != works || strings.HasPrefix(outcomes[1], "ok ") {
		t.Errorf("%s: %q; denied:\n%s", id, outcomes, listDenials(res.EgressDenied))
	}
}

// checkDistinct fails the test unless each guest has an address and a MAC of its
// own.
func checkDistinct(t *testing.T, c *client.Client, ids []string) {
	t.Helper()
	seen := map[string]string{}
	for _, id := range ids {
		res, err := c.Exec(t.Context(), id, client.Program{Code: ownAddresses})
		if err != nil || res.ExitCode != 0 {
			t.Fatalf("%s, %v", res.Stderr, err)
		}
		mac, addr, _ := strings.Cut(strings.TrimSpace(string(res.Stdout)), " ")
		if a, err := netip.ParseAddr(addr); err != nil || !netip.MustParsePrefix("100.64.0.0/10").Contains(a) || !strings.HasPrefix(mac, "02:") {
			t.Errorf("%s has %q", id, res.Stdout)
		}
		for _, what := range []string{mac, addr} {
			if seen[what] != "" {
				t.Errorf("%s and %s have both %s", id, seen[what], what)
			}
			seen[what] = id
		}
	}
}

const ownAddresses = `
import fcntl, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked = struct.pack("256s", b"eth0")
print(":".join("%02x" % b for b in fcntl.ioctl(s, 0x8927, asked)[18:24]), socket.inet_ntoa(fcntl.ioctl(s, 0x8915, asked)[20:24]))
`

// Sandboxes with egress leave nothing on the host, and nothing of the host's packet
// filter is touched; and what cannot be made is undone.
func TestEgressLeavesNothing(t *testing.T) {
	n := newInternet(t)
	n.Host("api.example.org", "203.0.113.10")
	strangers := strangersTable(t)
	h := newHost(t, patient, online, func(c *daemon.Config) {
		c.Templates, c.Faults = true, &fault.Set{} // and no shells, which come and go
	})
	open := policy(t, `[{"host": "api.example.org"}, {"cidr": "198.51.100.0/24"}]`)
	life := func() {
		id, err := h.Create(t.Context(), "python", client.WithEgress(open))
		if err != nil {
			t.Fatal(err)
		}
		checkWorks(t, h.Client, n, id, true)
		if err := h.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.BuildTemplate(t.Context(), rest.TemplateRequest{LanguagePack: "python", Egress: true}); err != nil {
		t.Fatal(err)
	}
	life() // opens the connection
	before, files := takeState(t), openFiles(t)
	var took []time.Duration
	for range span(10, 100) {
		began := time.Now()
		life()
		took = append(took, time.Since(began))
		checkState(t, before)
	}
	if now := openFiles(t); now > files {
		t.Errorf("%d open files, were %d", now, files)
	}
	t.Logf("%d lives, %v each", len(took), median(took).Round(time.Millisecond))
	if now := ruleset(t, os.Getpid()); now != strangers {
		t.Errorf("the host's rules are\n%s, were\n%s", now, strangers)
	}
	checkFaults(t, h, before, open)
}

// checkFaults breaks each step of making a network, and takes away its device.
func checkFaults(t *testing.T, h *host, before *oracle.Snapshot, open rest.EgressRequest) {
	t.Helper()
	for _, point := range egress.FaultPoints {
		for _, path := range []string{"restore", "cold-boot"} {
			hit := false
			h.cfg.Faults.Do(point, func() error { hit = true; return &fault.Error{Point: point} })
			id, err := h.Create(t.Context(), "python", client.WithEgress(open), client.WithBootPath(path))
			h.cfg.Faults.Do(point, func() error { return nil })
			if err == nil || !hit {
				t.Errorf("%s, %s: sandbox %s, %v, and the step was reached: %v", point, path, id, err, hit)
			}
			checkState(t, before)
			h.checkNoSandbox(t, point)
		}
	}
	checkWithoutTUN(t, h, before, open)
	checkWorksAgain(t, h, open)
}

// checkWithoutTUN takes the host's TUN away for a create, which says so.
func checkWithoutTUN(t *testing.T, h *host, before *oracle.Snapshot, open rest.EgressRequest) {
	t.Helper()
	const tun, away = "/dev/net/tun", "/dev/net/away"
	if err := os.Rename(tun, away); err != nil {
		t.Fatal(err)
	}
	_, err := h.Create(t.Context(), "python", client.WithEgress(open))
	if err := os.Rename(away, tun); err != nil {
		t.Fatal(err)
	}
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 503 || !strings.Contains(e.Message, "modprobe tun") {
		t.Errorf("without %s: %v", tun, err)
	}
	checkState(t, before)
	h.checkNoSandbox(t, tun)
}

func (h *host) checkNoSandbox(t *testing.T, why string) {
	t.Helper()
	if list, err := h.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("%s: there are %d sandboxes, %v", why, len(list), err)
	}
}

// strangersTable is a packet filter that is none of emberd's business.
func strangersTable(t *testing.T) (rules string) {
	t.Helper()
	makeStrangers(t)
	rules = ruleset(t, os.Getpid())
	if !strings.Contains(rules, "stranger") {
		t.Fatalf("the rules are %q", rules)
	}
	return rules
}
