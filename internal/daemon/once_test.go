package daemon

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
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
			cfg := fakeConfig(t)
			dir := cfg.Launcher.(*fctest.Launcher).Dir
			first := startVictim(t, dir, step)
			told, _ := manyOnce(n, func() (string, error) { return first.CreateOnce(t.Context(), key, "shell") })
			first.awaitEnd(t)
			if len(told) > 1 {
				t.Errorf("told %v", told)
			}

			cfg.Templates = false
			d, end := runUntil(t, cfg)
			defer end()
			awaitReady(t, d)
			c := client.New(d.Addr())
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
			await(t, "one VMM", func() bool { return len(fakesIn(t, dir)) == 1 })
			if _, err := c.CreateOnce(t.Context(), key, "python"); !isReused(err) {
				t.Errorf("the key with another body: %v", err)
			}
		})
	}
}

// A daemon is killed between the start of a program and its answer. Who asks again
// gets the answer, and the program has run once.
func TestExecOnceKilled(t *testing.T) {
	cfg := fakeConfig(t)
	dir := cfg.Launcher.(*fctest.Launcher).Dir
	first := startVictim(t, dir, "")
	id, err := first.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	runs, gate := filepath.Join(t.TempDir(), "runs"), filepath.Join(t.TempDir(), "gate")
	prog := client.Program{Key: "k", Code: "echo run >> " + runs + "; until [ -e " + gate + " ]; do sleep 0.05; done; echo out; exit 5"}
	cut := make(chan error)
	go func() { _, err := first.Exec(t.Context(), id, prog); cut <- err }()
	await(t, "the program's start", func() bool { _, err := os.Stat(runs); return err == nil })
	first.kill(t)
	if err := <-cut; err == nil {
		t.Error("a daemon that was killed answered")
	}

	cfg.Templates = false
	d, end := runUntil(t, cfg)
	defer end()
	awaitReady(t, d)
	c := client.New(d.Addr())
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
			cfg := fakeConfig(t)
			dir := cfg.Launcher.(*fctest.Launcher).Dir
			first := startVictim(t, dir, step)
			id, err := first.CreateOnce(t.Context(), "k", "shell")
			if err != nil {
				t.Fatal(err)
			}
			deleted := first.Delete(t.Context(), id) == nil
			first.awaitEnd(t)

			cfg.Templates = false
			for range 2 {
				d, end := runUntil(t, cfg)
				awaitReady(t, d)
				c := client.New(d.Addr())
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
				await(t, "no VMM", func() bool { return len(fakesIn(t, dir)) == 0 })
				end()
			}
		})
	}
}
