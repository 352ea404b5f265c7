package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/emberd/emberd/internal/audit"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/printable"
)

// Policies decides what sandboxes can be allowed to reach.
type Policies interface {
	// Resolve returns the policy that asked means, with nothing left to a default. An
	// error says why there can be none.
	Resolve(asked sandbox.Egress) (sandbox.Egress, error)
}

// Audit keeps what has to be known afterwards.
type Audit interface {
	Append(entry audit.Entry) error
}

// setTimeout is how long it may take to have another policy in force, whatever
// becomes of the client that asked for it.
const setTimeout = 10 * time.Second

// errEgressOff refuses what takes an interface where no sandbox is given one.
var errEgressOff = sandbox.NoEgress("this emberd gives no sandbox a network interface; its operator has switched egress off")

// HasEgress tells whether a sandbox can be given a network interface.
func (e *Engine) HasEgress() bool { return e.cfg.Egress != nil }

// resolveEgress returns the policy of a sandbox for which asked was asked, nil if
// that is to have no interface.
func (e *Engine) resolveEgress(asked *sandbox.Egress) (*sandbox.Egress, error) {
	if asked == nil {
		return nil, nil
	}
	if e.cfg.Egress == nil {
		return nil, errEgressOff
	}
	policy, err := e.cfg.Egress.Resolve(*asked)
	return &policy, err
}

// Egress returns what a sandbox may reach.
func (e *Engine) Egress(id sandbox.ID) (sandbox.Egress, error) {
	en, _, err := e.running(id)
	if err != nil {
		return sandbox.Egress{}, err
	}
	if sb, _ := en.snapshot(); sb.Egress != nil {
		return *sb.Egress, nil
	}
	return sandbox.Egress{}, sandbox.ErrNoEgress
}

// EgressDenials returns what was refused to a sandbox so far.
func (e *Engine) EgressDenials(id sandbox.ID) ([]sandbox.EgressDenial, error) {
	en, vm, err := e.running(id)
	if err != nil {
		return nil, err
	}
	if sb, _ := en.snapshot(); sb.Egress == nil {
		return nil, sandbox.ErrNoEgress
	}
	if vm.Network() == nil {
		return nil, errEgressOff
	}
	return denials(vm.Network()), nil
}

// SetEgress has another policy in force for a sandbox when it returns, and returns
// that. The sandbox's record has it before, so that a daemon which goes on with the
// sandbox enforces what was promised. After an error the old policy is in force.
func (e *Engine) SetEgress(ctx context.Context, id sandbox.ID, asked sandbox.Egress) (sandbox.Egress, error) {
	e.cfg.Foreground.Enter()
	defer e.cfg.Foreground.Leave()
	en, network, err := e.beginSet(id)
	if err != nil {
		return sandbox.Egress{}, err
	}
	defer e.wg.Done()
	policy, err := e.resolveEgress(&asked)
	if err != nil {
		return sandbox.Egress{}, err
	}
	select { // one at a time, as each puts back what it found
	case en.setting <- struct{}{}:
		defer func() { <-en.setting }()
	case <-ctx.Done():
		return sandbox.Egress{}, context.Cause(ctx)
	}
	before, _ := en.snapshot()
	if err := e.recordEgress(en, policy); err != nil {
		return sandbox.Egress{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), setTimeout)
	defer cancel()
	err = e.cfg.Faults.Hit(FaultEgress)
	if err == nil {
		err = network.Set(ctx, *policy)
	}
	if err != nil {
		return sandbox.Egress{}, e.unsetEgress(ctx, en, network, *before.Egress, err)
	}
	en.mu.Lock()
	en.sb.Egress = policy
	sb := en.sb
	en.mu.Unlock()
	e.auditPolicy(sb)
	e.cfg.Log.Info("egress set", "sandbox_id", sb.ID, "rules", len(policy.Allow))
	return *policy, nil
}

// beginSet returns a sandbox whose policy may be set, and its interface. The caller
// has one count of e.wg.
func (e *Engine) beginSet(id sandbox.ID) (*entry, provision.Network, error) {
	en := e.find(id)
	if en == nil {
		return nil, nil, sandbox.ErrNotFound
	}
	en.mu.Lock()
	defer en.mu.Unlock()
	switch {
	case en.sb.State != sandbox.Running:
		return nil, nil, sandbox.ErrNotFound
	case en.left:
		return nil, nil, sandbox.ErrClosing
	}
	if en.sb.Egress == nil {
		return nil, nil, sandbox.ErrNoEgress
	}
	network := en.vm.Network()
	if network == nil { // an earlier daemon made it, and this one has none
		return nil, nil, errEgressOff
	}
	e.wg.Add(1) // its watcher is counted as well
	return en, network, nil
}

// recordEgress writes down that a sandbox, if it still runs, has that policy.
func (e *Engine) recordEgress(en *entry, policy *sandbox.Egress) error {
	en.record.Lock()
	defer en.record.Unlock()
	sb, _ := en.snapshot()
	if sb.State != sandbox.Running {
		return sandbox.ErrNotFound
	}
	sb.Egress, sb.IdleExpiresAt = policy, time.Time{}
	return e.cfg.Store.Put(sb)
}

// unsetEgress goes back to the policy that was in force before, as another one
// cannot be for that cause.
func (e *Engine) unsetEgress(ctx context.Context, en *entry, network provision.Network, before sandbox.Egress, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), setTimeout)
	defer cancel()
	err := errors.Join(e.recordEgress(en, &before), network.Set(ctx, before))
	if errors.Is(err, sandbox.ErrNotFound) {
		return sandbox.ErrNotFound // it was taken down meanwhile, which is why
	}
	if err != nil {
		sb, _ := en.snapshot()
		e.cfg.Log.Error("the egress of a sandbox is not what it was", "sandbox_id", sb.ID, "err", err)
	}
	return errors.Join(cause, err)
}

// maxDeniedName is how long the name of a host is at most, in bytes.
const maxDeniedName = 253

// denials returns what was refused at an interface so far, each thing once, whoever
// refused it. The words are in part a guest's.
func denials(network provision.Network) []sandbox.EgressDenial {
	if network == nil {
		return nil
	}
	var all []sandbox.EgressDenial
	place := make(map[string]int)
	for _, d := range network.Denials() {
		d.Host = printable.Head(d.Host, maxDeniedName)
		d.Protocol = sandbox.Protocol(printable.Head(string(d.Protocol), 16))
		if d.Rule != nil {
			rule := *d.Rule
			rule.Host = printable.Head(rule.Host, maxDeniedName)
			d.Rule = &rule
		}
		at, known := place[d.Key()]
		if !known {
			place[d.Key()] = len(all)
			all = append(all, d)
			continue
		}
		all[at].Count += d.Count
		if d.Last.After(all[at].Last) {
			all[at].Last = d.Last
		}
	}
	return all
}

// What is told of refusals: a watcher looks every lookInterval. The first maxNews
// things that a sandbox is refused are told one by one, and then one each
// newsInterval; whatever else, and what is refused again, is counted, and has at
// most maxLines lines of the audit's each linesInterval.
const (
	lookInterval  = 2 * time.Second
	maxNews       = 32
	newsInterval  = 10 * time.Second
	linesInterval = time.Minute
	maxLines      = 64
)

// teller tells of what a sandbox is refused. It is for the sandbox's owner alone.
type teller struct {
	// counted is what was told, and written what the audit has.
	counted, written []sandbox.EgressDenial
	writtenAt        time.Time
	news             *rate.Limiter
}

func newTeller() *teller {
	return &teller{writtenAt: time.Now(), news: rate.NewLimiter(rate.Every(newsInterval), maxNews)}
}

// tellDenials tells of what was refused since the last time. The last one is told
// before the sandbox is taken down.
func (e *Engine) tellDenials(en *entry, network provision.Network, t *teller, last bool) {
	if network == nil {
		return
	}
	now := denials(network)
	sb, _ := en.snapshot()
	known := make(map[string]bool, len(t.counted))
	for _, d := range t.counted {
		known[d.Key()] = true
	}
	for _, d := range sandbox.EgressDenialsSince(t.counted, now) {
		isNew := !known[d.Key()] && t.news.Allow()
		e.tell(sb, sandbox.Event{Kind: sandbox.EventEgressDenied, Reason: string(d.Reason), Denied: &d, CountOnly: !isNew})
		if isNew {
			e.audit(audit.Entry{Event: audit.EgressDenied, Sandbox: sb.ID, Pack: sb.Pack, Denied: &d})
			t.written = append(t.written, d)
		}
	}
	t.counted = now
	if !last && time.Since(t.writtenAt) < linesInterval {
		return
	}
	var others int64
	for i, d := range sandbox.EgressDenialsSince(t.written, now) {
		if i < maxLines {
			e.audit(audit.Entry{Event: audit.EgressDenied, Sandbox: sb.ID, Pack: sb.Pack, Denied: &d})
		} else {
			others += d.Count
		}
	}
	if others > 0 {
		e.audit(audit.Entry{Event: audit.EgressDenied, Sandbox: sb.ID, Pack: sb.Pack, Others: others})
	}
	t.written, t.writtenAt = now, time.Now()
}

// auditPolicy writes down what a sandbox may reach from now on.
func (e *Engine) auditPolicy(sb sandbox.Sandbox) {
	if sb.Egress != nil {
		e.audit(audit.Entry{Event: audit.EgressSet, Sandbox: sb.ID, Pack: sb.Pack, Egress: sb.Egress})
	}
}

// audit writes one line. The log tells once that it cannot be done, and again when
// it has been possible in between.
func (e *Engine) audit(entry audit.Entry) {
	if e.cfg.Audit == nil {
		return
	}
	entry.Time = e.cfg.Now().UTC()
	err := e.cfg.Audit.Append(entry)
	if failed := err != nil; e.auditFails.Swap(failed) != failed && failed {
		e.cfg.Log.Error("lines of the audit are lost", "err", err)
	}
}

// maxRefusals is how many refusals are kept in all for programs that ended.
const maxRefusals = 1024

// refusals are what was refused while a program ran.
type refusals struct {
	ex sandbox.ExecID
	// before is what had been refused when it began.
	before []sandbox.EgressDenial
	ended  bool
	// denied is what was refused up to its end.
	denied []sandbox.EgressDenial
}

// follow keeps apart what is refused while a program runs from what was before.
func (e *Engine) follow(run execution) {
	if run.vm.Network() == nil {
		return
	}
	before := denials(run.vm.Network())
	run.en.mu.Lock()
	defer run.en.mu.Unlock()
	run.en.refused = append(run.en.refused, &refusals{ex: run.ex, before: before})
}

// refused returns what was refused while a program ran that has ended.
func (e *Engine) refused(run execution) []sandbox.EgressDenial {
	if run.vm.Network() == nil {
		return nil
	}
	now := denials(run.vm.Network())
	en := run.en
	en.mu.Lock()
	defer en.mu.Unlock()
	at := slices.IndexFunc(en.refused, func(r *refusals) bool { return r.ex == run.ex })
	if at < 0 {
		return nil
	}
	r := en.refused[at]
	r.denied = sandbox.EgressDenialsSince(r.before, now)
	r.before, r.ended = nil, true
	en.forgetRefusals()
	return r.denied
}

// forgetRefusals drops the oldest refusals of programs that ended, if there are too
// many, and programs that were refused nothing. The caller holds en.mu.
func (en *entry) forgetRefusals() {
	kept := 0
	for i, r := range slices.Backward(en.refused) {
		if !r.ended {
			continue
		}
		if kept += len(r.denied); len(r.denied) == 0 || kept > maxRefusals {
			en.refused = slices.Delete(en.refused, i, i+1)
		}
	}
}

// refusedTo returns what was refused while each program of a sandbox ran that runs
// or that is remembered.
func (e *Engine) refusedTo(en *entry) func(sandbox.ExecID) []sandbox.EgressDenial {
	_, vm := en.snapshot()
	if vm == nil || vm.Network() == nil {
		return func(sandbox.ExecID) []sandbox.EgressDenial { return nil }
	}
	now := denials(vm.Network())
	en.mu.Lock()
	defer en.mu.Unlock()
	all := make(map[sandbox.ExecID][]sandbox.EgressDenial, len(en.refused))
	for _, r := range en.refused {
		if r.ended {
			all[r.ex] = r.denied
		} else {
			all[r.ex] = sandbox.EgressDenialsSince(r.before, now)
		}
	}
	return func(ex sandbox.ExecID) []sandbox.EgressDenial { return all[ex] }
}
