package daemontest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

// Stand is where daemons are broken.
type Stand struct {
	// Dir is the [Order]'s.
	Dir string
	// VMMs counts those that run for the daemons here.
	VMMs func() int
	// Left names what is left when no sandbox is.
	Left func() []string
	// Quick is how long something may take that waits for nothing.
	Quick time.Duration
}

// Sweep breaks a daemon at a point in each way: a step that fails is undone and
// told of, one that takes long holds up nobody else, and a daemon that is killed
// there is followed by one that has each sandbox whole or nothing of it. A
// sandbox that a client was told of is lost by none of it, unless it is the very
// one whose adoption fails.
func (s *Stand) Sweep(t *testing.T, p Point) {
	t.Helper()
	b := &bystander{Stand: s, t: t, point: p}
	order := Order{Dir: s.Dir, Templates: p.Reach == Restore || p.Reach == Build, Pool: p.Reach == Refill}
	b.d = Start(t, order)
	b.d.AwaitReady()
	b.prepare()
	var options []client.CreateOption
	if p.Reach == Egress {
		options = reaching("a.example")
	}
	if err := b.create("", options...); err != nil {
		t.Fatal(err)
	}
	b.first = b.there[0]
	for _, way := range []Way{Fails, Stops, Kills} {
		if p.Reach == Recover {
			b.breakRecovery(order, way)
			continue
		}
		b.breakStep(way)
		if way == Kills {
			b.d = Start(t, order)
			b.d.AwaitReady()
		}
		b.judge(string(way))
	}
	b.d.Stop()
	for _, left := range s.Left() {
		t.Errorf("left behind: %s", left)
	}
	if n := s.VMMs(); n > 0 {
		t.Errorf("%d VMMs are left", n)
	}
}

// Shell is the template that is built.
var Shell = rest.TemplateRequest{LanguagePack: "shell"}

// bystander asks a daemon for things, and knows what it was told.
type bystander struct {
	*Stand
	t     *testing.T
	point Point
	d     *Daemon

	// there are the sandboxes that the daemon has said there are, gone those of
	// which it has said that they are not. open says that it ended before it said
	// what became of a request.
	there, gone []string
	open        bool
	// first is the oldest of them.
	first string
}

// prepare has what the requests need that are to come.
func (b *bystander) prepare() {
	b.t.Helper()
	if b.point.Reach != Restore {
		return
	}
	if _, err := b.d.BuildTemplate(b.t.Context(), Shell); err != nil {
		b.t.Fatal(err)
	}
}

// removeTemplates has the next template be built.
func (b *bystander) removeTemplates() {
	b.t.Helper()
	list, err := b.d.Templates(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, t := range list {
		if t.ID != "" {
			if err := b.d.DeleteTemplate(b.t.Context(), t.ID); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// reaching is a sandbox that may reach a host.
func reaching(host string) []client.CreateOption {
	return []client.CreateOption{client.WithEgress(hostPolicy(host))}
}

func hostPolicy(host string) rest.EgressRequest {
	return rest.EgressRequest{Allow: []rest.EgressRuleRequest{{Host: host}}}
}

// create makes a sandbox in one way.
func (b *bystander) create(path string, options ...client.CreateOption) error {
	b.t.Helper()
	if path != "" {
		options = append(options, client.WithBootPath(path))
	}
	id, err := b.d.Create(b.t.Context(), "shell", options...)
	if err == nil {
		b.there = append(b.there, id)
	}
	return b.answered(err)
}

// delete ends the sandbox that was made last.
func (b *bystander) delete() error {
	b.t.Helper()
	last := len(b.there) - 1
	id := b.there[last]
	b.there = b.there[:last]
	err := b.d.Delete(b.t.Context(), id)
	if err == nil {
		b.gone = append(b.gone, id)
	}
	return b.answered(err)
}

// answered returns err if the daemon answered it, and notes that it did not: that
// is for one that was killed.
func (b *bystander) answered(err error) error {
	b.t.Helper()
	if _, answer := errors.AsType[*client.Error](err); err == nil || answer {
		return err
	}
	b.open = true
	if b.point.Reach != Recover {
		select {
		case <-b.d.Ended:
		case <-time.After(patience):
			b.t.Errorf("no answer: %v", err)
		}
	}
	return err
}

// ask asks for what has the daemon come to the step.
func (b *bystander) ask() error {
	b.t.Helper()
	switch b.point.Reach {
	case Boot:
		return b.create("cold-boot")
	case Restore:
		return b.create("restore")
	case Refill:
		return b.create("")
	case Build:
		_, err := b.d.BuildTemplate(b.t.Context(), Shell)
		return b.answered(err)
	case Exec:
		_, err := b.d.Exec(b.t.Context(), b.there[0], client.Program{Code: "true"})
		return b.answered(err)
	case Delete:
		return b.delete()
	case Network:
		return b.create("", reaching("a.example")...)
	case Egress:
		_, err := b.d.SetEgress(b.t.Context(), b.first, hostPolicy("b.example"))
		return b.answered(err)
	case Life:
		if err := b.create("cold-boot"); err != nil {
			return err
		}
		return b.delete()
	}
	return nil
}

// breakStep has the daemon come to the step, and the step break.
func (b *bystander) breakStep(way Way) {
	b.t.Helper()
	switch b.point.Reach {
	case Delete:
		if err := b.create(""); err != nil {
			b.t.Fatal(err)
		}
	case Build:
		b.removeTemplates()
	case Refill:
		b.await("a full pool", func() bool { return b.ready() == 1 })
	}
	b.d.Arm(Breakage{b.point.Name, b.point.Visit, way})
	answer := make(chan error, 1)
	go func() { answer <- b.ask() }()
	if way == Kills {
		b.await("the daemon's end", func() bool { return closed(b.d.Ended) })
		b.t.Logf("its last answer: %v", <-answer) // which may have been before the step
		return
	}
	select {
	case <-b.d.Reached:
	case <-time.After(patience):
		b.t.Fatalf("the daemon never comes to this step, which it %s", way)
	}
	if way == Stops {
		b.othersGoOn()
		b.d.GoOn()
	}
	err := <-answer
	if way == Stops && err != nil {
		b.t.Errorf("what took long failed: %v", err)
	}
}

// othersGoOn checks that nobody waits for a step that takes long, but who asked
// for it.
func (b *bystander) othersGoOn() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), b.Quick)
	defer cancel()
	_, listed := b.d.List(ctx)
	if b.point.Reach == Recover {
		listed = nil // there is no list yet
	}
	if err := errors.Join(b.d.Healthy(ctx), listed); err != nil {
		b.t.Errorf("while the step takes long: %v", err)
	}
	if b.point.Reach == Recover || b.point.Reach == Exec {
		return
	}
	if res, err := b.d.Exec(ctx, b.first, client.Program{Code: "exit 5"}); err != nil || res.ExitCode != 5 {
		b.t.Errorf("a program while the step takes long: %+v, %v", res, err)
	}
}

// breakRecovery breaks a daemon that goes on with what the last one left.
func (b *bystander) breakRecovery(order Order, way Way) {
	b.t.Helper()
	b.d.Kill()
	broken := order
	broken.Break = Breakage{b.point.Name, b.point.Visit, way}
	b.d = Start(b.t, broken)
	switch way {
	case Fails:
		b.d.AwaitReady()
		b.gone = append(b.gone, b.there...) // which could not be gone on with
		b.there = nil
	case Stops:
		<-b.d.Reached
		b.othersGoOn()
		b.d.GoOn()
		b.d.AwaitReady()
	case Kills:
		b.await("the daemon's end", func() bool { return closed(b.d.Ended) })
		b.d = Start(b.t, order)
		b.d.AwaitReady()
	}
	b.judge(string(way))
	if len(b.there) == 0 {
		if err := b.create(""); err != nil {
			b.t.Fatal(err)
		}
		b.first = b.there[0]
	}
}

// judge holds what the daemon says against what it, and those before it, have
// said, and against what there is.
func (b *bystander) judge(after string) {
	b.t.Helper()
	list, err := b.d.List(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	var ids []string
	for _, sb := range list {
		ids = append(ids, sb.ID)
	}
	for _, id := range b.there {
		if !slices.Contains(ids, id) {
			b.t.Errorf("after it %s, %s is not there, which a client was told of", after, id)
		}
	}
	for _, id := range b.gone {
		if slices.Contains(ids, id) {
			b.t.Errorf("after it %s, %s is there, whose end a client was told of", after, id)
		}
	}
	if len(ids) != len(b.there) && !b.open {
		b.t.Errorf("after it %s, %v are there, and clients were told of %v", after, ids, b.there)
	}
	b.there, b.open = ids, false
	for _, id := range ids {
		if res, err := b.d.Exec(b.t.Context(), id, client.Program{Code: "echo it goes on"}); err != nil || string(res.Stdout) != "it goes on\n" {
			b.t.Errorf("after it %s, %s: %q, %v", after, id, res.Stdout, err)
		}
	}
	b.await(fmt.Sprintf("VMMs of %d sandboxes alone after it %s", len(ids), after), func() bool {
		return b.VMMs() == len(ids)+b.ready()
	})
	// What failed can be had now.
	if err := b.create(""); err != nil {
		b.t.Errorf("after it %s, a create: %v", after, err)
	} else if err := b.delete(); err != nil {
		b.t.Errorf("after it %s, a delete: %v", after, err)
	}
}

// ready is how many microVMs wait in the pool.
func (b *bystander) ready() (n int) {
	b.t.Helper()
	stocks, err := b.d.Pool(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, stock := range stocks {
		n += stock.Ready
	}
	return n
}

func (b *bystander) await(what string, is func() bool) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
