// Package warm starts an interpreter ahead of the code that it will run.
//
// The one idea is the ready process: one that has done all of its interpreter's
// start-up, has its streams and its control group, and waits for its code. It
// runs one piece of code and ends, as a process that was started for it would.
// How ready processes come to be is up to the pack: each is started on its own
// ([Prestart]), or a zygote forks them ([Forkserver]).
//
// The invariant is that nothing here stands between a program and its
// interpreter: whatever is in doubt, [Interpreter.Take] returns nil and the
// caller starts the plain interpreter. It never does so once a ready process
// has said that it runs the code. Everything that this package talks to runs
// beside programs that may be hostile to it, so each wait has a bound. What the
// package does not know is frames, and how a program's end is told.
package warm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/reaper"
)

// Kind is how ready processes come to be.
type Kind string

const (
	// Forkserver is a zygote, which forks a ready process when it is asked to.
	Forkserver Kind = "forkserver"
	// Prestart is a process that becomes ready itself.
	Prestart Kind = "prestart"
)

// Recipe is how a pack's interpreter is started ahead.
type Recipe struct {
	Kind Kind
	// Argv is the zygote, or the ready process.
	Argv []string
	// Watch are the files and directories that the interpreter reads as it starts.
	// Once one has changed, what was started before is not used.
	Watch []string
}

// ParseRecipe reads a recipe as the kernel command line has it: the kind and the
// arguments, with commas between them, and what is watched, too.
func ParseRecipe(s, watch string) (Recipe, error) {
	kind, argv, _ := strings.Cut(s, ",")
	r := Recipe{Kind: Kind(kind), Argv: strings.Split(argv, ",")}
	if watch != "" {
		r.Watch = strings.Split(watch, ",")
	}
	if r.Kind != Forkserver && r.Kind != Prestart || r.Argv[0] == "" {
		return Recipe{}, fmt.Errorf("%q is no way to start an interpreter ahead", s)
	}
	return r, nil
}

const (
	// startTimeout is how long an interpreter may take to become ready, and
	// forkTimeout a zygote that has forked before.
	startTimeout = 30 * time.Second
	forkTimeout  = 5 * time.Second
	// handOverTimeout is how long a ready process may take to take its code.
	handOverTimeout = 2 * time.Second
	// patience is how long a program waits for a process that is about to be
	// ready before it gets the plain interpreter. It is twice as long as the last
	// process took to start, if that is longer: the next has a lead on the plain one.
	patience = 2 * time.Second
	// lead is what the answer to a program has before the next ready process is
	// made: on a host with few CPUs the client would wait for that.
	lead = 10 * time.Millisecond
	// minRest and maxRest are how long nothing is started ahead after a failure;
	// it doubles with each.
	minRest, maxRest = time.Second, time.Minute
)

// Config is what an Interpreter needs.
type Config struct {
	Recipe Recipe
	// Interpreter is the plain interpreter, which is watched as well.
	Interpreter string

	Runner *proc.Runner
	Reaper *reaper.Reaper
	Log    *slog.Logger
}

// maker makes ready processes. One goroutine uses it.
type maker interface {
	make(ctx context.Context) (*ready, error)
	close()
}

// Interpreter keeps one ready process. Any number of goroutines may use it.
type Interpreter struct {
	cfg   Config
	maker maker

	mu       sync.Mutex
	ready    *ready
	stale    []*ready      // which nobody gets, and the keeper ends
	spare    bool          // one is to be made for whoever comes
	waiters  int           // how many wait for one
	changed  chan struct{} // closed when a process is ready, or none will be soon
	epoch    int           // counts expirations: what was begun before one is stale
	standing bool          // the last attempt worked
	took     time.Duration // by the last one, where each is started anew
	failed   error         // why it did not, while nothing is attempted

	wake   chan struct{}
	later  *time.Timer // rouses the keeper
	cancel context.CancelFunc
	keeper sync.WaitGroup
}

// New returns an Interpreter that starts nothing until it is asked to. The
// caller closes it.
func New(cfg Config) *Interpreter {
	ctx, cancel := context.WithCancel(context.Background())
	i := &Interpreter{cfg: cfg, cancel: cancel, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
	i.later = time.AfterFunc(lead, i.rouse)
	i.later.Stop()
	i.maker = &prestart{cfg: cfg}
	if cfg.Recipe.Kind == Forkserver {
		i.maker = &forkserver{cfg: cfg}
	}
	i.keeper.Go(func() { i.keep(ctx) })
	return i
}

// Close ends the ready process and what makes them.
func (i *Interpreter) Close() {
	i.later.Stop()
	i.cancel()
	i.keeper.Wait()
}

// Prepare has a ready process made, if there is none, without waiting for it. That
// begins a moment later, unless somebody needs one before.
func (i *Interpreter) Prepare() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ready == nil {
		i.spare = true
		i.later.Reset(lead)
	}
}

// Wait prepares a ready process and returns when it stands.
func (i *Interpreter) Wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("no interpreter became ready in time"))
	defer cancel()
	i.Prepare()
	i.rouse()
	for {
		i.mu.Lock()
		ready, failed, changed := i.ready, i.failed, i.changed
		i.mu.Unlock()
		if ready != nil || failed != nil {
			return failed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Expire gives up the ready process, which nobody gets from then on: one that has
// drawn its randomness before a snapshot would draw the same in each clone. It is
// ended, and another one made, when the caller has done what is more urgent and
// calls Prepare, or somebody wants one.
func (i *Interpreter) Expire() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ready != nil {
		i.stale = append(i.stale, i.ready)
		i.ready, i.spare = nil, true
	}
	i.epoch++
}

// Take hands code to a ready process and returns it, running, for the caller to
// attend. It returns nil if the caller has to start the interpreter itself, and
// then no instruction of code has run. When the program has ended, the caller
// calls Prepare.
func (i *Interpreter) Take(ctx context.Context, code []byte) *proc.Process {
	if len(code) > proc.MaxArg || bytes.IndexByte(code, 0) >= 0 {
		return nil // such code is run in another way
	}
	r := i.pop(ctx)
	if r == nil {
		return nil
	}
	p, err := r.handOver(code, i.cfg.origin())
	if err != nil {
		i.cfg.Log.Warn("an interpreter that was started ahead did not take its code", "err", err)
		return nil
	}
	return p
}

// pop returns a ready process, or nil if there will be none soon.
func (i *Interpreter) pop(ctx context.Context) *ready {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ready == nil && !i.worthWaiting() {
		return nil
	}
	if i.ready == nil {
		i.waiters++
		defer func() { i.waiters-- }()
		i.await(ctx)
	}
	r := i.ready
	i.ready = nil
	if i.waiters > 0 {
		i.rouse()
	}
	return r
}

// worthWaiting tells whether waiting for the next ready process beats starting
// an interpreter. A zygote forks faster than that; a process that is started
// ahead has a lead only if it was begun before, and serves one.
func (i *Interpreter) worthWaiting() bool {
	if i.cfg.Recipe.Kind == Prestart {
		return i.standing && i.spare && i.waiters == 0
	}
	return i.standing
}

// await waits for a ready process, as long as there is hope. The caller holds
// mu, which is given up meanwhile.
func (i *Interpreter) await(ctx context.Context) {
	timer := time.NewTimer(max(patience, 2*i.took))
	defer timer.Stop()
	i.rouse()
	for hope := true; hope && i.ready == nil && i.failed == nil; {
		changed, late := i.changed, false
		i.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			hope = false
		}
		i.mu.Lock()
		if late {
			// Whoever comes next is not to wait for as long, in vain too.
			hope, i.standing = false, false
		}
	}
}

// rouse has the keeper look again at what is wanted.
func (i *Interpreter) rouse() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// announce tells who waits that something changed. The caller holds mu.
func (i *Interpreter) announce() {
	close(i.changed)
	i.changed = make(chan struct{})
}
