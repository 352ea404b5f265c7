package daemon

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/testenv"
)

var (
	historyTime = flag.Duration("history", 15*time.Second, "for how long clients ask a daemon that is broken again and again")
	historySeed = flag.Uint64("seed", 0, "what TestHistory begins with; 0 chooses")
)

// act is what a client did to one sandbox, or the test to its VMM.
type act string

const (
	created act = "created"  // and was told so
	seen    act = "seen"     // it is there
	unseen  act = "not seen" // it is not there
	deleted act = "deleted"  // and was told so
	// Nobody said whether it came to be, or was deleted.
	perhapsCreated act = "perhaps created"
	perhapsDeleted act = "perhaps deleted"
	killed         act = "its VMM was killed" // so it goes, some time later
)

// The states of a sandbox's model.
const (
	unborn = iota
	there
	gone
)

// model says what may happen to a sandbox: it is created once, is there for
// everybody until it goes for everybody, and never comes back.
var model = porcupine.NondeterministicModel{
	Init: func() []any { return []any{unborn} },
	Step: func(state, what, _ any) []any {
		switch what.(act) {
		case created:
			if state == unborn {
				return []any{there}
			}
		case perhapsCreated:
			if state == unborn {
				return []any{unborn, there}
			}
		case seen:
			if state == there {
				return []any{there}
			}
		case unseen:
			if state != there {
				return []any{state}
			}
		case deleted:
			if state == there {
				return []any{gone}
			}
		case perhapsDeleted, killed:
			if state == there {
				return []any{there, gone}
			}
			return []any{state}
		}
		return nil
	},
	DescribeOperation: func(what, _ any) string { return string(what.(act)) },
}

// history is what clients did, and were told.
type history struct {
	t     *testing.T
	dir   string
	began time.Time
	// daemon is the one that there is now.
	daemon atomic.Pointer[daemontest.Daemon]

	mu   sync.Mutex
	acts map[string][]porcupine.Operation // by the sandbox
	// here are the sandboxes that nobody has missed yet, missed some of the others.
	here, missed, killed []string
	// answers counts them by what they were.
	answers map[string]int
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

// note notes an act that began at call and is over.
func (h *history) note(who int, id string, what act, call int64) {
	h.noteUntil(who, id, what, call, h.now())
}

func (h *history) noteUntil(who int, id string, what act, call, end int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acts[id] = append(h.acts[id], porcupine.Operation{ClientId: who, Input: what, Call: call, Return: end})
	switch at := slices.Index(h.here, id); {
	case at < 0 && len(h.acts[id]) == 1:
		h.here = append(h.here, id)
	case at >= 0 && (what == deleted || what == unseen):
		h.here = slices.Delete(h.here, at, at+1)
		h.missed = append(h.missed, id)
		h.missed = h.missed[max(0, len(h.missed)-4):]
	}
}

// never is when an act ends of which nobody says when.
const never = int64(time.Hour)

func (h *history) count(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers[what]++
}

// any is a sandbox that is there as far as is known, or now and then one that is
// not. It is "" if there is none, or one more is to be made: some, but not many.
func (h *history) any(random *rand.Rand) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	from := h.here
	if len(h.missed) > 0 && random.IntN(5) == 0 {
		from = h.missed
	}
	if few := len(h.here) < 8 && random.IntN(8) == 0; few || len(from) == 0 {
		return ""
	}
	return from[random.IntN(len(from))]
}

// ask has a client do one thing at random.
func (h *history) ask(ctx context.Context, who int, random *rand.Rand) {
	c := h.daemon.Load().Client
	id := h.any(random)
	call := h.now()
	switch dice := random.IntN(100); {
	case id == "":
		id, err := c.Create(ctx, "shell")
		if err == nil {
			h.note(who, id, created, call)
		}
		h.judge("create", err, http.StatusInternalServerError, http.StatusInsufficientStorage, http.StatusServiceUnavailable)
	case dice < 45:
		_, err := c.Get(ctx, id)
		h.look(who, id, call, err)
		h.judge("get", err, http.StatusNotFound)
	case dice < 60:
		token := fmt.Sprint(random.Uint64())
		res, err := c.Exec(ctx, id, client.Program{Code: "echo " + token + "; exit 3"})
		if err == nil && (string(res.Stdout) != token+"\n" || res.ExitCode != 3) {
			h.t.Errorf("a program printed %q and ended with %d", res.Stdout, res.ExitCode)
		}
		h.look(who, id, call, err)
		h.judge("exec", err, http.StatusNotFound, http.StatusBadGateway, http.StatusInternalServerError)
	case dice < 75:
		list, err := c.List(ctx)
		if err == nil {
			h.lookAtAll(who, call, list)
		}
		h.judge("list", err)
	default:
		err := c.Delete(ctx, id)
		switch {
		case err == nil:
			h.note(who, id, deleted, call)
		case statusOf(err) == http.StatusNotFound:
			h.note(who, id, unseen, call)
		case errors.Is(err, client.ErrUnreachable):
		case statusOf(err) == 0: // the daemon has ended, and does nothing more
			h.note(who, id, perhapsDeleted, call)
		case statusOf(err) != http.StatusServiceUnavailable:
			h.noteUntil(who, id, perhapsDeleted, call, never)
		}
		h.judge("delete", err, http.StatusNotFound, http.StatusInternalServerError)
	}
}

// look notes what an answer says about whether a sandbox is there.
func (h *history) look(who int, id string, call int64, err error) {
	switch {
	case err == nil:
		h.note(who, id, seen, call)
	case statusOf(err) == http.StatusNotFound:
		h.note(who, id, unseen, call)
	}
}

// lookAtAll is look for a list. A sandbox that is in it and that nobody was told
// of is one whose create was not answered.
func (h *history) lookAtAll(who int, call int64, list []rest.Sandbox) {
	h.mu.Lock()
	known := slices.Concat(h.here, h.missed)
	h.mu.Unlock()
	for _, sb := range list {
		h.note(who, sb.ID, seen, call)
		known = slices.DeleteFunc(known, func(id string) bool { return id == sb.ID })
	}
	for _, id := range known {
		h.mu.Lock()
		before := slices.ContainsFunc(h.acts[id], func(op porcupine.Operation) bool { return op.Call < call })
		h.mu.Unlock()
		if before {
			h.note(who, id, unseen, call)
		}
	}
}

// judge counts an answer, and fails the test if it is none that may be: success,
// those given, none at all, and that the daemon begins or ends.
func (h *history) judge(what string, err error, may ...int) {
	e, answered := errors.AsType[*client.Error](err)
	switch {
	case err == nil:
		h.count(what + " ok")
	case errors.Is(err, client.ErrUnreachable): // nobody was asked
		h.count("refused connections")
		time.Sleep(5 * time.Millisecond)
	case !answered:
		h.count(what + " unanswered")
	case e.Code == "starting_up" || e.Code == "shutting_down":
		h.count(e.Code)
		time.Sleep(2 * time.Millisecond)
	case slices.Contains(may, e.Status):
		h.count(what + " " + e.Code)
	default:
		h.t.Errorf("%s: %d %s: %s", what, e.Status, e.Code, e.Message)
	}
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Status
	}
	return 0
}

// Five clients create, look, run programs and delete, while the daemon is killed,
// at any moment or at one of its steps, and ends in order, steps take long, VMMs
// are killed, and the disk is full. For everybody each sandbox is created once, is
// there, and goes for good: no create that was answered is lost and no delete
// undone.
func TestHistory(t *testing.T) {
	if !testenv.OwnMounts(t) {
		return
	}
	seed := cmp.Or(*historySeed, uint64(time.Now().UnixNano()))
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := standIn(t, mountSmall(t)).Dir
	h := &history{t: t, dir: dir, began: time.Now(), acts: map[string][]porcupine.Operation{}, answers: map[string]int{}}
	n := &nemesis{history: h, random: random, faults: map[string]int{}}
	n.next()
	n.await()

	ctx, done := context.WithCancel(t.Context())
	defer done()
	var clients sync.WaitGroup
	for who := range 5 {
		random := rand.New(rand.NewPCG(seed, uint64(who+1)))
		clients.Go(func() {
			for ctx.Err() == nil {
				h.ask(t.Context(), who, random)
			}
		})
	}
	for end := time.Now().Add(*historyTime); time.Now().Before(end) && !t.Failed(); {
		time.Sleep(time.Duration(100+random.IntN(500)) * time.Millisecond)
		n.strike()
	}
	done()
	clients.Wait()
	n.await()
	h.end()
	t.Logf("faults: %v\nanswers: %v", n.faults, h.answers)
	h.check()
}

// nemesis breaks daemons.
type nemesis struct {
	*history
	random *rand.Rand
	faults map[string]int
}

// next starts a daemon.
func (n *nemesis) next() {
	n.daemon.Store(daemontest.Start(n.t, daemontest.Order{Dir: n.dir, Keep: true, Pool: n.random.IntN(2) == 0}))
}

// await waits until the daemon is ready.
func (n *nemesis) await() { n.daemon.Load().AwaitReady() }

// strike does one of the things that happen.
func (n *nemesis) strike() {
	d := n.daemon.Load()
	switch dice := n.random.IntN(100); {
	case dice < 25:
		n.faults["daemon killed"]++
		d.Kill()
		n.next()
	case dice < 40:
		n.faults["daemon ended"]++
		n.await() // one that begins may not yet have heard what SIGTERM is
		d.Stop()
		n.next()
	case dice < 70:
		n.breakStep(d)
	case dice < 85:
		n.faults["VMM killed"]++
		n.killVMM(d)
	default:
		n.faults["disk full"]++
		n.fillDisk()
	}
}

// breakStep has the daemon stop at some step, or be killed there. Steps that are
// not reached do no harm.
func (n *nemesis) breakStep(d *daemontest.Daemon) {
	n.await()
	point := daemontest.Points[n.random.IntN(len(daemontest.Points))]
	way := []daemontest.Way{daemontest.Stops, daemontest.Fails, daemontest.Kills}[n.random.IntN(3)]
	d.Arm(daemontest.Breakage{Point: point.Name, Visit: 1 + n.random.IntN(3), Way: way})
	reached := false
	select {
	case <-d.Reached:
		reached = true
	case <-d.Ended:
	case <-time.After(time.Second):
	}
	n.faults[fmt.Sprintf("step %s: %v", way, reached)]++
	if reached && way == daemontest.Stops {
		time.Sleep(time.Duration(n.random.IntN(300)) * time.Millisecond)
		if n.random.IntN(2) == 0 {
			d.GoOn()
			return
		}
	}
	if reached && way == daemontest.Fails {
		return
	}
	d.Kill() // or the step would break some time later
	n.next()
}

func (n *nemesis) killVMM(d *daemontest.Daemon) {
	id := n.any(n.random)
	if id == "" {
		return
	}
	in, err := d.Inspect(n.t.Context(), id)
	if err != nil {
		return
	}
	call := n.now()
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", in.Jail.PID)); err == nil && strings.HasPrefix(cwd, n.dir) {
		_ = syscall.Kill(in.Jail.PID, syscall.SIGKILL)
	}
	n.noteUntil(-1, id, killed, call, never)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.killed = append(n.killed, id)
}

func (n *nemesis) fillDisk() {
	defer fill(n.t, n.dir)()
	time.Sleep(time.Duration(n.random.IntN(300)) * time.Millisecond)
}

// end looks at every sandbox once more, ends those that are there, and the
// daemon. Of the others nothing is left.
func (h *history) end() {
	d := h.daemon.Load()
	for _, id := range h.killed {
		await(h.t, "the end of "+id, func() bool { _, err := d.Get(h.t.Context(), id); return statusOf(err) == http.StatusNotFound })
	}
	for id := range h.acts {
		call := h.now()
		_, err := d.Get(h.t.Context(), id)
		h.look(0, id, call, err)
		if err != nil && statusOf(err) != http.StatusNotFound {
			h.t.Error(err)
		}
	}
	list, err := d.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, sb := range list {
		if err := d.Delete(h.t.Context(), sb.ID); err != nil {
			h.t.Error(err)
		}
	}
	run := paths.Run(filepath.Join(h.dir, "run"))
	await(h.t, "nothing to be left", func() bool {
		entries, err := os.ReadDir(run.Sandboxes())
		return err == nil && len(entries) == 0
	})
	d.Stop()
}

// check has each sandbox's history judged.
func (h *history) check() {
	h.t.Helper()
	longest := 0
	for id, acts := range h.acts {
		births := 0
		for _, op := range acts {
			if op.Input == created {
				births++
			}
		}
		switch births {
		case 0: // it was found, so somebody asked for it
			acts = append(acts, porcupine.Operation{ClientId: -2, Input: perhapsCreated, Return: never})
		case 1:
		default:
			h.t.Errorf("%s was given to %d clients", id, births)
		}
		longest = max(longest, len(acts))
		switch porcupine.CheckOperationsTimeout(model.ToModel(), acts, 20*time.Second) {
		case porcupine.Ok:
		case porcupine.Unknown:
			h.t.Errorf("whether there is an order of the %d acts of %s is not found out", len(acts), id)
		case porcupine.Illegal:
			slices.SortFunc(acts, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
			var lines []string
			for _, op := range acts {
				lines = append(lines, fmt.Sprintf("%v to %v: client %d: %s",
					time.Duration(op.Call), time.Duration(op.Return), op.ClientId, op.Input))
			}
			h.t.Errorf("no order of these explains %s:\n%s", id, strings.Join(lines, "\n"))
		}
	}
	h.t.Logf("%d sandboxes, the longest history has %d acts", len(h.acts), longest)
}
