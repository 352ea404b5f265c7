package engine

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/x/fault"
)

// mostModelled is how many sandboxes there may be at a time.
const mostModelled = 4

// breakable are the steps that a model breaks, which are those of requests.
var breakable = slices.Concat(FaultPoints, provision.FaultPoints, firecracker.FaultPoints, store.FaultPoints,
	[]string{FaultExec, FaultDelete, FaultClear})

// engineModel is what an engine has to be like: a set of ids.
type engineModel struct {
	f *fixture
	// there are the sandboxes that there are, gone those that there were.
	there, gone map[sandbox.ID]bool
}

// One client has any requests carried out, in any order, while steps fail, VMMs
// are killed and the daemon is followed by another: the engine is a set of ids. A
// failure says how to have it again (-rapid.seed, or -rapid.failfile).
func TestModel(t *testing.T) {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given { // a hundred would take a minute
		if err := flag.Set("rapid.checks", "15"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		f := makeFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Capacity.Sandboxes = mostModelled })
		defer f.close()
		m := &engineModel{f: f, there: map[sandbox.ID]bool{}, gone: map[sandbox.ID]bool{}}
		rt.Repeat(map[string]func(*rapid.T){
			"create":       m.create,
			"create fails": m.failingCreate,
			"exec":         m.exec,
			"exec fails":   m.failingExec,
			"delete":       m.delete,
			"delete fails": m.failingDelete,
			"unknown":      m.unknown,
			"VMM killed":   m.killVMM,
			"restart":      m.restart,
			"":             m.check,
		})
	})
}

// any is a sandbox of which there is one now.
func (m *engineModel) any(rt *rapid.T) sandbox.ID {
	if len(m.there) == 0 {
		rt.Skip("there is none")
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(m.there))).Draw(rt, "sandbox")
}

// settle waits until nothing is left of the sandboxes that were deleted, which
// count as long as there is.
func (m *engineModel) settle() {
	m.f.t.Helper()
	m.f.await("what was deleted is cleared", 20*time.Second, func() bool { return len(m.f.entriesNow()) == len(m.there) })
}

func (m *engineModel) create(rt *rapid.T) {
	m.settle()
	sb, err := m.f.Create(rt.Context(), sandbox.Spec{Pack: "shell"})
	switch {
	case len(m.there) == mostModelled:
		if !errors.Is(err, sandbox.ErrQuota) {
			rt.Fatalf("one more than there may be: %v", err)
		}
	case err != nil:
		rt.Fatalf("create: %v", err)
	case m.there[sb.ID] || m.gone[sb.ID]:
		rt.Fatalf("%s was another one's", sb.ID)
	default:
		m.there[sb.ID] = true
	}
}

// breaking has one step fail once, if it is reached, while f runs.
func (m *engineModel) breaking(rt *rapid.T, f func()) {
	point := rapid.SampledFrom(breakable).Draw(rt, "step")
	visit := rapid.IntRange(1, 3).Draw(rt, "visit")
	hits := make(chan struct{}, 3)
	m.f.faults.Do(point, func() error {
		select {
		case hits <- struct{}{}:
		default:
			return nil
		}
		if len(hits) == visit {
			return &fault.Error{Point: point}
		}
		return nil
	})
	defer m.f.faults.Do(point, func() error { return nil })
	f()
}

func (m *engineModel) failingCreate(rt *rapid.T) {
	m.settle()
	if len(m.there) == mostModelled {
		rt.Skip("there is no room")
	}
	m.breaking(rt, func() {
		sb, err := m.f.Create(rt.Context(), sandbox.Spec{Pack: "shell"})
		if err == nil {
			m.there[sb.ID] = true
		} else if sb.ID != "" {
			rt.Fatalf("%s with error %v", sb.ID, err)
		}
		m.settle()
	})
}

func (m *engineModel) exec(rt *rapid.T) {
	id, code := m.any(rt), rapid.IntRange(0, 255).Draw(rt, "exit code")
	res, err := m.f.Exec(rt.Context(), id, sandbox.ExecRequest{Code: fmt.Sprintf("echo %s %d; exit %d", id, code, code)})
	if err != nil || res.ExitCode != code || string(res.Stdout) != fmt.Sprintln(id, code) {
		rt.Fatalf("exec: %d %q, %v", res.ExitCode, res.Stdout, err)
	}
}

func (m *engineModel) failingExec(rt *rapid.T) {
	id := m.any(rt)
	m.breaking(rt, func() {
		res, err := m.f.Exec(rt.Context(), id, sandbox.ExecRequest{Code: "exit 5"})
		if injected, ok := errors.AsType[*fault.Error](err); err != nil && (!ok || injected.Point != FaultExec) || err == nil && res.ExitCode != 5 {
			rt.Fatalf("exec: %d, %v", res.ExitCode, err)
		}
	})
}

func (m *engineModel) delete(rt *rapid.T) {
	id := m.any(rt)
	if err := m.f.Delete(rt.Context(), id); err != nil {
		rt.Fatalf("delete: %v", err)
	}
	delete(m.there, id)
	m.gone[id] = true
}

// failingDelete has a delete succeed whatever step of it fails: then it takes
// longer.
func (m *engineModel) failingDelete(rt *rapid.T) {
	m.breaking(rt, func() {
		m.delete(rt)
		m.settle()
	})
}

func (m *engineModel) unknown(rt *rapid.T) {
	ids := append(slices.Sorted(maps.Keys(m.gone)), sandbox.NewID())
	id := rapid.SampledFrom(ids).Draw(rt, "sandbox that is not there")
	_, got := m.f.Get(id)
	_, ran := m.f.Exec(rt.Context(), id, sandbox.ExecRequest{Code: "true"})
	for _, err := range []error{got, ran, m.f.Delete(rt.Context(), id)} {
		if !errors.Is(err, sandbox.ErrNotFound) {
			rt.Fatalf("of %s: %v", id, err)
		}
	}
}

func (m *engineModel) killVMM(rt *rapid.T) {
	id := m.any(rt)
	_, jail, err := m.f.Inspect(id)
	if err != nil {
		rt.Fatalf("inspect: %v", err)
	}
	if err := syscall.Kill(jail.PID, syscall.SIGKILL); err != nil {
		rt.Fatal(err)
	}
	delete(m.there, id)
	m.gone[id] = true
	m.settle()
}

func (m *engineModel) restart(*rapid.T) { m.f.restart() }

// check compares the engine with the model, as clients see it and on the disk.
func (m *engineModel) check(rt *rapid.T) {
	listed := map[sandbox.ID]bool{}
	for _, sb := range m.f.List() {
		listed[sb.ID] = true
		if got, err := m.f.Get(sb.ID); err != nil || got.ID != sb.ID || got.State != sandbox.Running {
			rt.Fatalf("get: %+v, %v", got, err)
		}
	}
	if !maps.Equal(listed, m.there) {
		rt.Fatalf("there are %v, want %v", listed, m.there)
	}
	for id := range m.gone {
		if _, err := m.f.Get(id); !errors.Is(err, sandbox.ErrNotFound) {
			rt.Fatalf("%s is there again: %v", id, err)
		}
	}
	records := map[string]bool{}
	for _, e := range recordsOf(m.f) {
		records[e.Name()] = true
	}
	for id := range m.there {
		if !records[string(id)+".json"] {
			rt.Fatalf("there is no record of %s", id)
		}
	}
	if promised, _ := m.f.Promised(); promised.Sandboxes < len(m.there) || promised.Sandboxes != len(m.f.entriesNow()) {
		rt.Fatalf("%d sandboxes count, %d are there, %d in the table", promised.Sandboxes, len(m.there), len(m.f.entriesNow()))
	}
}
