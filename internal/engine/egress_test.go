package engine

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/audit"
	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// policies are those of an operator who lets sandboxes reach what is public.
type policies struct{}

func (policies) Resolve(asked sandbox.Egress) (sandbox.Egress, error) {
	return egress.Ranges(nil).Resolve(asked, sandbox.Egress{RateKiBps: 1000})
}

// fakeNetworks gives every VM the same interface.
type fakeNetworks struct {
	*fctest.Networks
	*fakeNetwork
}

func (n fakeNetworks) Attach(ctx context.Context, vmm egress.VMM, policy sandbox.Egress) (provision.Network, error) {
	return n.with(n.Networks.Attach(ctx, vmm, policy))
}

func (n fakeNetworks) Adopt(ctx context.Context, vmm egress.VMM, policy sandbox.Egress) (provision.Network, error) {
	return n.with(n.Networks.Adopt(ctx, vmm, policy))
}

func (n fakeNetworks) with(network provision.Network, err error) (provision.Network, error) {
	if err != nil {
		return nil, err
	}
	return ofVM{n.fakeNetwork, network}, nil
}

// ofVM is a fakeNetwork as one VM has it.
type ofVM struct {
	*fakeNetwork
	network provision.Network
}

func (n ofVM) Guest() egress.Guest { return n.network.Guest() }
func (n ofVM) Close() error        { return n.network.Close() }

// fakeNetwork is an interface that refuses what it is told to refuse.
type fakeNetwork struct {
	onSet func(policy sandbox.Egress) error

	mu      sync.Mutex
	sets    []sandbox.Egress
	denials []sandbox.EgressDenial
}

func (n *fakeNetwork) Set(_ context.Context, policy sandbox.Egress) error {
	n.mu.Lock()
	n.sets = append(n.sets, policy)
	n.mu.Unlock()
	if n.onSet != nil {
		return n.onSet(policy)
	}
	return nil
}

func (n *fakeNetwork) Denials() []sandbox.EgressDenial {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.denials)
}

// deny refuses host once more.
func (n *fakeNetwork) deny(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := sandbox.EgressDenial{Host: host, Port: 443, Protocol: sandbox.TCP, Reason: sandbox.DeniedNoRule}
	at := slices.IndexFunc(n.denials, func(o sandbox.EgressDenial) bool { return o.Key() == d.Key() })
	if at < 0 {
		n.denials, at = append(n.denials, d), len(n.denials)
	}
	n.denials[at].Count++
}

// lines are the lines of an audit.
type lines struct {
	mu  sync.Mutex
	all []audit.Entry
	err error
}

func (l *lines) Append(entry audit.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, entry)
	return l.err
}

// words are the lines as "EVENT HOST COUNT".
func (l *lines) words() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var words []string
	for _, entry := range l.all {
		word := string(entry.Event)
		if entry.Denied != nil {
			word += fmt.Sprintf(" %s %d", entry.Denied.Host, entry.Denied.Count)
		}
		if entry.Egress != nil {
			word += fmt.Sprintf(" %d", len(entry.Egress.Allow))
		}
		if entry.Others > 0 {
			word += fmt.Sprintf(" others %d", entry.Others)
		}
		words = append(words, word)
	}
	return words
}

// withNetwork is an engine whose VMs all have one interface.
func withNetwork(t *testing.T, options ...func(*Config, *provision.ColdConfig)) (*fixture, *fakeNetwork) {
	t.Helper()
	n := &fakeNetwork{}
	return newFixture(t, append(options, func(c *Config, cold *provision.ColdConfig) {
		c.Egress = policies{}
		cold.Networks = fakeNetworks{&fctest.Networks{Launcher: cold.Launcher.(*fctest.Launcher)}, n}
	})...), n
}

var asked = sandbox.Egress{Allow: []sandbox.EgressRule{{Host: "Example.ORG."}}}

var resolved = sandbox.Egress{
	Allow:     []sandbox.EgressRule{{Host: "example.org", Ports: []uint16{80, 443}, Protocol: sandbox.TCP}},
	RateKiBps: 1000,
}

func (f *fixture) createReaching(policy sandbox.Egress) sandbox.ID {
	f.t.Helper()
	sb, err := f.Create(f.t.Context(), sandbox.Spec{Pack: "shell", Egress: &policy})
	if err != nil {
		f.t.Fatal(err)
	}
	return sb.ID
}

// recorded is the policy in the record of the one sandbox.
func (f *fixture) recorded() *sandbox.Egress {
	f.t.Helper()
	all, err := f.records.Load()
	if err != nil || len(all) != 1 {
		f.t.Fatalf("records %v, %v", all, err)
	}
	return all[0].Egress
}

// requests notes what a Provisioner is asked for.
type requests struct {
	provision.Provisioner
	last provision.Request
}

func (r *requests) Provision(ctx context.Context, req provision.Request) (*provision.VM, error) {
	r.last = req
	return r.Provisioner.Provision(ctx, req)
}

func TestEgressOfACreate(t *testing.T) {
	audited := &lines{}
	f, _ := withNetwork(t, func(c *Config, _ *provision.ColdConfig) { c.Audit = audited })
	asks := &requests{Provisioner: f.Engine.cfg.Provisioner}
	f.Engine.cfg.Provisioner = asks
	id := f.createReaching(asked)
	sb, err := f.Get(id)
	if err != nil || !reflect.DeepEqual(sb.Egress, &resolved) {
		t.Errorf("it has %+v, %v", sb.Egress, err)
	}
	if got, err := f.Egress(id); err != nil || !reflect.DeepEqual(got, resolved) {
		t.Errorf("Egress = %+v, %v", got, err)
	}
	if got := f.recorded(); !reflect.DeepEqual(got, &resolved) {
		t.Errorf("recorded is %+v", got)
	}
	if got := asks.last.Egress; !reflect.DeepEqual(got, &resolved) {
		t.Errorf("a VM was asked for with %+v", got)
	}
	if got := audited.words(); !slices.Equal(got, []string{"egress_set 1"}) {
		t.Errorf("the audit has %q", got)
	}
	f.create()
	if asks.last.Egress != nil {
		t.Errorf("a VM without egress was asked for with %+v", asks.last.Egress)
	}
}

func TestEgressThatIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		asked  sandbox.Egress
		code   sandbox.Code
		says   string
	}{
		"switched off": {func(c *Config) { c.Egress = nil }, asked, sandbox.CodeNoEgress, "switched egress off"},
		"no name":      {func(*Config) {}, sandbox.Egress{Allow: []sandbox.EgressRule{{Host: "a b"}}}, sandbox.CodeInvalid, "rule 1"},
	} {
		t.Run(name, func(t *testing.T) {
			events := &heard{}
			f := newFixture(t, func(c *Config, _ *provision.ColdConfig) {
				c.Egress, c.Events = policies{}, events
				tt.change(c)
			})
			if f.HasEgress() == (tt.code == sandbox.CodeNoEgress) {
				t.Error("it does not know whether it has egress")
			}
			_, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell", Egress: &tt.asked})
			if code, msg := sandbox.Public(err); code != tt.code || !strings.Contains(msg, tt.says) {
				t.Errorf("got %v", err)
			}
			if got := events.words(); len(got) > 0 {
				t.Errorf("something was begun: %q", got)
			}
			f.checkEmpty()
		})
	}
}

// A VM that came without the interface that was asked for is not a sandbox.
func TestEgressWithoutInterface(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Egress = policies{} })
	if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell", Egress: &asked}); err == nil {
		t.Error("it was created")
	}
	f.awaitEmpty()
}

func TestSetEgress(t *testing.T) {
	audited := &lines{}
	f, n := withNetwork(t, func(c *Config, _ *provision.ColdConfig) { c.Audit = audited })
	id := f.createReaching(sandbox.Egress{})
	n.onSet = func(policy sandbox.Egress) error {
		if got := f.recorded(); !reflect.DeepEqual(got, &policy) {
			t.Errorf("in force comes %+v, recorded is %+v", policy, got)
		}
		return nil
	}
	got, err := f.SetEgress(t.Context(), id, asked)
	if err != nil || !reflect.DeepEqual(got, resolved) {
		t.Fatalf("SetEgress = %+v, %v", got, err)
	}
	if got, err := f.Egress(id); err != nil || !reflect.DeepEqual(got, resolved) {
		t.Errorf("Egress = %+v, %v", got, err)
	}
	if !reflect.DeepEqual(n.sets, []sandbox.Egress{resolved}) {
		t.Errorf("set was %+v", n.sets)
	}
	if got := audited.words(); !slices.Equal(got, []string{"egress_set 0", "egress_set 1"}) {
		t.Errorf("the audit has %q", got)
	}

	if _, err := f.SetEgress(t.Context(), id, sandbox.Egress{RateKiBps: -1}); err == nil || len(n.sets) != 1 {
		t.Errorf("a policy that is none: %v, set was %+v", err, n.sets)
	}
	if _, err := f.SetEgress(t.Context(), "sb_000000000000", asked); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("of no sandbox: %v", err)
	}
}

// What cannot be put into force is not what the sandbox has, on disk or in memory.
func TestSetEgressFails(t *testing.T) {
	f, n := withNetwork(t)
	id := f.createReaching(asked)
	broken := errors.New("netlink is broken")
	n.onSet = func(policy sandbox.Egress) error {
		if len(policy.Allow) == 0 {
			return broken
		}
		return nil
	}
	if _, err := f.SetEgress(t.Context(), id, sandbox.Egress{}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if got, err := f.Egress(id); err != nil || !reflect.DeepEqual(got, resolved) {
		t.Errorf("Egress = %+v, %v", got, err)
	}
	if got := f.recorded(); !reflect.DeepEqual(got, &resolved) {
		t.Errorf("recorded is %+v", got)
	}
	if last := n.sets[len(n.sets)-1]; len(n.sets) != 2 || !reflect.DeepEqual(last, resolved) {
		t.Errorf("set was %+v", n.sets)
	}
}

func TestSetEgressIsUndone(t *testing.T) {
	f, n := withNetwork(t)
	id := f.createReaching(asked)
	f.faults.Fail(FaultEgress)
	_, err := f.SetEgress(t.Context(), id, sandbox.Egress{})
	if injected, ok := errors.AsType[*fault.Error](err); !ok || injected.Point != FaultEgress {
		t.Errorf("got %v, want the fault", err)
	}
	if got := f.recorded(); !reflect.DeepEqual(got, &resolved) || !reflect.DeepEqual(n.sets, []sandbox.Egress{resolved}) {
		t.Errorf("recorded is %+v, set was %+v", got, n.sets)
	}
}

func TestEgressOfASandboxWithoutInterface(t *testing.T) {
	f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Egress = policies{} })
	id := f.create()
	for name, err := range map[string]error{
		"set":     func() error { _, err := f.SetEgress(t.Context(), id, asked); return err }(),
		"show":    func() error { _, err := f.Egress(id); return err }(),
		"denials": func() error { _, err := f.EgressDenials(id); return err }(),
	} {
		if !errors.Is(err, sandbox.ErrNoEgress) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if res, err := f.Exec(t.Context(), id, sandbox.ExecRequest{Code: "true"}); err != nil || res.EgressDenied != nil {
		t.Errorf("exec: %+v, %v", res, err)
	}
}

// A daemon that has switched egress off goes on with the sandbox, and says why its
// policy cannot be changed.
func TestEgressIsSwitchedOffLater(t *testing.T) {
	f, _ := withNetwork(t)
	id := f.createReaching(asked)
	f.end()
	f.cfg.Egress, f.cold.Networks = nil, nil
	f.begin()
	f.Recover(t.Context())
	if got, err := f.Egress(id); err != nil || !reflect.DeepEqual(got, resolved) {
		t.Errorf("Egress = %+v, %v", got, err)
	}
	_, setErr := f.SetEgress(t.Context(), id, asked)
	_, denialsErr := f.EgressDenials(id)
	for name, err := range map[string]error{"set": setErr, "denials": denialsErr} {
		if code, msg := sandbox.Public(err); code != sandbox.CodeNoEgress || !strings.Contains(msg, "switched egress off") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// However many set it at a time, one does, and the record and the answer are of the
// same.
func TestSetEgressOneAtATime(t *testing.T) {
	f, n := withNetwork(t)
	id := f.createReaching(asked)
	var at, most atomic.Int64
	n.onSet = func(sandbox.Egress) error {
		if now := at.Add(1); now > most.Load() {
			most.Store(now)
		}
		time.Sleep(time.Millisecond)
		at.Add(-1)
		return nil
	}
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			policy := sandbox.Egress{Allow: []sandbox.EgressRule{{Host: fmt.Sprintf("h%d.example.org", i)}}}
			if _, err := f.SetEgress(t.Context(), id, policy); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	got, err := f.Egress(id)
	if err != nil || !reflect.DeepEqual(got, n.sets[len(n.sets)-1]) || !reflect.DeepEqual(f.recorded(), &got) {
		t.Errorf("it has %+v, recorded is %+v", got, f.recorded())
	}
	if most.Load() != 1 {
		t.Errorf("%d were set at a time", most.Load())
	}
}

// Nothing of a sandbox that is deleted meanwhile comes back.
func TestSetEgressWhileItIsDeleted(t *testing.T) {
	f, n := withNetwork(t)
	id := f.createReaching(asked)
	setting, deleted := make(chan struct{}), make(chan struct{})
	var once sync.Once
	n.onSet = func(sandbox.Egress) error {
		once.Do(func() { close(setting) })
		<-deleted
		return errors.New("the interface is gone")
	}
	failed := make(chan error, 1)
	go func() {
		_, err := f.SetEgress(t.Context(), id, sandbox.Egress{})
		failed <- err
	}()
	<-setting
	if err := f.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
	f.awaitEmpty()
	close(deleted)
	if err := <-failed; !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	f.checkEmpty()
}

// The policy is the sandbox's, whichever daemon goes on with it.
func TestEgressOutlivesTheDaemon(t *testing.T) {
	f, _ := withNetwork(t)
	id := f.createReaching(asked)
	f.end()
	f.begin()
	f.Recover(t.Context())
	if got, err := f.Egress(id); err != nil || !reflect.DeepEqual(got, resolved) {
		t.Errorf("Egress = %+v, %v", got, err)
	}
	if _, err := f.SetEgress(t.Context(), id, sandbox.Egress{}); err != nil {
		t.Error(err)
	}
	if got := f.recorded(); got == nil || len(got.Allow) != 0 {
		t.Errorf("recorded is %+v", got)
	}
}

// hosts are the hosts and counts of denials.
func hosts(denials []sandbox.EgressDenial) string {
	var all []string
	for _, d := range denials {
		all = append(all, fmt.Sprintf("%s:%d", d.Host, d.Count))
	}
	return strings.Join(all, " ")
}

func TestExecTellsWhatWasRefused(t *testing.T) {
	f, n := withNetwork(t)
	id := f.createReaching(asked)
	n.deny("before.test")
	exec := func(refused ...string) string {
		ended := make(chan sandbox.ExecResult)
		go func() {
			res, err := f.Exec(t.Context(), id, sandbox.ExecRequest{Code: "sleep 0.3"})
			if err != nil {
				t.Error(err)
			}
			ended <- res
		}()
		f.awaitExecs(id, 1)
		f.await("it is followed", 5*time.Second, func() bool { return f.followed(id) == 1 })
		for _, host := range refused {
			n.deny(host)
		}
		return hosts((<-ended).EgressDenied)
	}
	if got := exec("a.test", "b.test", "a.test"); got != "a.test:2 b.test:1" {
		t.Errorf("got %q", got)
	}
	if got := exec(); got != "" {
		t.Errorf("got %q", got)
	}
	if got := exec("a.test\x1b[2J\n"); got != "a.test�[2J�:1" {
		t.Errorf("got %q", got)
	}
	all, err := f.EgressDenials(id)
	if err != nil || hosts(all) != "before.test:1 a.test:2 b.test:1 a.test�[2J�:1" {
		t.Errorf("in all %q, %v", hosts(all), err)
	}
}

// What two parts of the interface refused is one thing, and told once.
func TestDenialsOfOneThing(t *testing.T) {
	n := &fakeNetwork{}
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	n.denials = []sandbox.EgressDenial{
		{Host: "a.test", Protocol: sandbox.TCP, Count: 5, Last: early}, {Host: "b.test", Count: 1}, {Host: "a.test", Protocol: sandbox.TCP, Count: 3, Last: late},
	}
	got := denials(ofVM{fakeNetwork: n})
	if hosts(got) != "a.test:8 b.test:1" || !got[0].Last.Equal(late) {
		t.Errorf("got %+v", got)
	}
	if since := sandbox.EgressDenialsSince(got, denials(ofVM{fakeNetwork: n})); since != nil {
		t.Errorf("told again: %+v", since)
	}
}

// followed is how many programs of a sandbox run and are followed.
func (f *fixture) followed(id sandbox.ID) int {
	en := f.find(id)
	en.mu.Lock()
	defer en.mu.Unlock()
	n := 0
	for _, r := range en.refused {
		if !r.ended {
			n++
		}
	}
	return n
}

func TestStartedExecTellsWhatWasRefused(t *testing.T) {
	f, n := withNetwork(t)
	id := f.createReaching(asked)
	n.deny("before.test")
	ex, err := f.StartExec(t.Context(), id, sandbox.ExecRequest{Code: "read x", StdinOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	quiet, err := f.StartExec(t.Context(), id, sandbox.ExecRequest{Code: "true"})
	if err != nil {
		t.Fatal(err)
	}
	f.awaitExecs(id, 1)
	n.deny("a.test")
	if got, err := f.GetExec(t.Context(), id, ex); err != nil || got.Result != nil || hosts(got.EgressDenied) != "a.test:1" {
		t.Errorf("while it runs: %+v, %v", got, err)
	}
	n.deny("a.test")
	if err := f.FeedExec(t.Context(), id, ex, []byte("x\n"), true); err != nil {
		t.Fatal(err)
	}
	f.awaitExecs(id, 0)
	n.deny("after.test")
	all, err := f.Execs(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range all {
		want := map[sandbox.ExecID]string{ex: "a.test:2"}[got.ID]
		if hosts(got.EgressDenied) != want {
			t.Errorf("%s: got %q, want %q", got.ID, hosts(got.EgressDenied), want)
		}
	}
	if len(all) != 2 || quiet == ex {
		t.Errorf("programs %+v", all)
	}
}

// What is kept for programs that ended is bounded, the oldest goes first, and what
// runs is never forgotten.
func TestRefusalsAreBounded(t *testing.T) {
	en := &entry{refused: []*refusals{{ex: "runs"}}}
	for i := range 10 {
		r := &refusals{ex: sandbox.ExecID(fmt.Sprint(i)), ended: true, denied: make([]sandbox.EgressDenial, maxRefusals/4)}
		en.refused = append(en.refused, r, &refusals{ex: "nothing", ended: true})
		en.forgetRefusals()
	}
	var left []string
	for _, r := range en.refused {
		left = append(left, string(r.ex))
	}
	if want := []string{"runs", "6", "7", "8", "9"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
}

func TestDenialsAreTold(t *testing.T) {
	events, audited := &heard{}, &lines{}
	f, n := withNetwork(t, func(c *Config, _ *provision.ColdConfig) { c.Events, c.Audit = events, audited })
	// One that has no watcher, which would look as well.
	const id = "sb_a1b2c3d4e5f6"
	en, teller := &entry{sb: sandbox.Sandbox{ID: id, Pack: "shell"}}, newTeller()
	look := func(last bool) (kept, counted int64) {
		events.mu.Lock()
		from := len(events.all)
		events.mu.Unlock()
		f.tellDenials(en, ofVM{fakeNetwork: n}, teller, last)
		events.mu.Lock()
		defer events.mu.Unlock()
		for _, event := range events.all[from:] {
			if event.Kind != sandbox.EventEgressDenied || event.Sandbox != id || event.Reason != string(sandbox.DeniedNoRule) {
				t.Errorf("told is %+v", event)
			}
			counted += event.Denied.Count
			if !event.CountOnly {
				kept++
			}
		}
		return kept, counted
	}
	check := func(when string, last bool, wantKept, wantCounted int64) {
		t.Helper()
		if kept, counted := look(last); kept != wantKept || counted != wantCounted {
			t.Errorf("%s: %d are told, %d counted; want %d, %d", when, kept, counted, wantKept, wantCounted)
		}
	}
	check("at first", false, 0, 0)
	n.deny("a.test")
	n.deny("a.test")
	n.deny("b.test")
	check("when something is refused", false, 2, 3)
	check("when nothing more is", false, 0, 0)
	n.deny("a.test")
	check("when it is refused again", false, 0, 1)
	for i := range 200 {
		n.deny(fmt.Sprintf("scan%d.test", i))
	}
	check("when a guest tries everything", false, maxNews-2, 200)

	want := []string{"egress_denied a.test 2", "egress_denied b.test 1"}
	for i := range maxNews - 2 {
		want = append(want, fmt.Sprintf("egress_denied scan%d.test 1", i))
	}
	if got := audited.words(); !slices.Equal(got, want) {
		t.Errorf("the audit has %q", got)
	}
	check("at last", true, 0, 0)
	got := audited.words()
	if len(got) != len(want)+maxLines+1 || got[len(want)] != "egress_denied a.test 1" || got[len(got)-1] != fmt.Sprintf("egress_denied others %d", 1+200-(maxNews-2)-maxLines) {
		t.Errorf("the audit has %d lines, %q", len(got), got[len(want):])
	}
}

// What a sandbox was refused just before its end is told, too, and that the audit
// does not take it ends nothing.
func TestDenialsAreToldAtTheEnd(t *testing.T) {
	events, audited := &heard{}, &lines{err: errors.New("no space left")}
	f, n := withNetwork(t, func(c *Config, _ *provision.ColdConfig) { c.Events, c.Audit = events, audited })
	id := f.createReaching(asked)
	n.deny("late.test")
	if err := f.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	f.awaitEmpty()
	want := []string{"created", "ready", "egress_denied no_rule", "deleted request"}
	f.await("it is told", 5*time.Second, func() bool { return len(events.words()) >= len(want) })
	if got := events.words(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := audited.words(); !slices.Contains(got, "egress_denied late.test 1") {
		t.Errorf("the audit has %q", got)
	}
}
