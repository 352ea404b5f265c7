package daemon

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/provision"
)

// manyOnce calls do n times at once, and returns the distinct results and how often
// it failed.
func manyOnce(n int, do func() (string, error)) (all []string, errs []error) {
	type outcome struct {
		got string
		err error
	}
	outcomes := make(chan outcome, n)
	for range n {
		go func() { got, err := do(); outcomes <- outcome{got, err} }()
	}
	for range n {
		o := <-outcomes
		if o.err != nil {
			errs = append(errs, o.err)
		} else if !slices.Contains(all, o.got) {
			all = append(all, o.got)
		}
	}
	return all, errs
}

// startVictim starts a daemon and returns when it is ready, or has been killed.
func startVictim(t *testing.T, o daemontest.Order) *daemontest.Daemon {
	t.Helper()
	d := daemontest.Start(t, o)
	d.AwaitReady()
	return d
}

// awaitEnd waits until a daemon has come to its step, and was killed there.
func awaitEnd(t *testing.T, d *daemontest.Daemon) {
	t.Helper()
	await(t, "the daemon's end", func() bool {
		select {
		case <-d.Ended:
			return true
		default:
			return false
		}
	})
}

// isReused tells whether a request was refused for its key.
func isReused(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Status == http.StatusUnprocessableEntity && e.Code == "key_reused"
}

// Whatever a daemon was doing when it was killed, a request with a key that is sent
// again, by many and at once, makes one sandbox.
func TestCreateOnceKilledAtEachStep(t *testing.T) {
	for _, step := range slices.Concat(engine.FaultPoints, provision.FaultPoints, firecracker.FaultPoints) {
		t.Run(step, func(t *testing.T) {
			const n, key = 20, "a-key"
			stand := fakeStand(t)
			order := daemontest.Order{Dir: stand.Dir, Keep: true, Break: daemontest.Breakage{Point: step, Visit: 1, Way: daemontest.Kills}}
			first := startVictim(t, order)
			told, _ := manyOnce(n, func() (string, error) { return first.CreateOnce(t.Context(), key, "shell") })
			awaitEnd(t, first)
			if len(told) > 1 {
				t.Errorf("told %v", told)
			}

			c := startVictim(t, daemontest.Order{Dir: stand.Dir})
			ids, errs := manyOnce(n, func() (string, error) { return c.CreateOnce(t.Context(), key, "shell") })
			if len(ids) != 1 || len(errs) > 0 {
				t.Fatalf("twenty requests are answered with %v, %v", ids, errs)
			}
			if len(told) > 0 && told[0] != ids[0] {
				t.Errorf("%s became %s", told[0], ids[0])
			}
			if list, err := c.List(t.Context()); err != nil || len(list) != 1 || list[0].ID != ids[0] {
				t.Errorf("there are %v, %v", list, err)
			}
			await(t, "one VMM", func() bool { return stand.VMMs() == 1 })
			if _, err := c.CreateOnce(t.Context(), key, "python"); !isReused(err) {
				t.Errorf("the key with another body: %v", err)
			}
		})
	}
}

// A daemon is killed between the start of a program and its answer. Who asks again
// gets the answer, and the program has run once.
func TestExecOnceKilled(t *testing.T) {
	stand := fakeStand(t)
	first := startVictim(t, daemontest.Order{Dir: stand.Dir, Keep: true})
	id, err := first.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	runs, gate := filepath.Join(t.TempDir(), "runs"), filepath.Join(t.TempDir(), "gate")
	prog := client.Program{Key: "k", Code: "echo run >> " + runs + "; until [ -e " + gate + " ]; do sleep 0.05; done; echo out; exit 5"}
	cut := make(chan error)
	go func() { _, err := first.Exec(t.Context(), id, prog); cut <- err }()
	await(t, "the program's start", func() bool { _, err := os.Stat(runs); return err == nil })
	first.Kill()
	if err := <-cut; err == nil {
		t.Error("a daemon that was killed answered")
	}

	c := startVictim(t, daemontest.Order{Dir: stand.Dir})
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ids, errs := manyOnce(20, func() (string, error) {
			res, err := c.Exec(t.Context(), id, prog)
			if string(res.Stdout) != "out\n" || res.ExitCode != 5 {
				t.Errorf("%+v", res)
			}
			return res.ExecID, err
		})
		if len(ids) != 1 || len(errs) > 0 {
			t.Errorf("%v, %v", ids, errs)
		}
	}
	if b, err := os.ReadFile(runs); err != nil || string(b) != "run\n" {
		t.Errorf("it ran %q, %v", b, err)
	}
	prog.Code = "true"
	if _, err := c.Exec(t.Context(), id, prog); !isReused(err) {
		t.Errorf("the key for another program: %v", err)
	}
	if _, err := c.StartExec(t.Context(), id, prog, false); !isReused(err) {
		t.Errorf("the key for another program that is started: %v", err)
	}
}

// A daemon is killed while it takes down a sandbox that was made once. Who asks
// again is told of that one, and no other is made.
func TestDeleteKilledAndAskedAgain(t *testing.T) {
	for _, step := range []string{engine.FaultDelete, engine.FaultClear} {
		t.Run(step, func(t *testing.T) {
			stand := fakeStand(t)
			order := daemontest.Order{Dir: stand.Dir, Keep: true, Break: daemontest.Breakage{Point: step, Visit: 1, Way: daemontest.Kills}}
			first := startVictim(t, order)
			id, err := first.CreateOnce(t.Context(), "k", "shell")
			if err != nil {
				t.Fatal(err)
			}
			deleted := first.Delete(t.Context(), id) == nil
			awaitEnd(t, first)

			for range 2 {
				c := startVictim(t, daemontest.Order{Dir: stand.Dir, Keep: true})
				if again, err := c.CreateOnce(t.Context(), "k", "shell"); err != nil || again != id {
					t.Errorf("%s became %s, %v", id, again, err)
				}
				list, err := c.List(t.Context())
				if err != nil || len(list) > 1 || len(list) == 1 && (deleted || list[0].ID != id) {
					t.Errorf("there are %v, %v", list, err)
				}
				if len(list) == 1 {
					if err := c.Delete(t.Context(), id); err != nil {
						t.Error(err)
					}
					deleted = true
				}
				await(t, "no VMM", func() bool { return stand.VMMs() == 0 })
				c.Stop()
			}
		})
	}
}
