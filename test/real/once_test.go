package real

import (
	"errors"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
)

// twenty calls do twenty times at once, and returns the distinct answers, and how
// often there was none.
func twenty(t *testing.T, do func() (string, error)) (all []string, failed int) {
	t.Helper()
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer)
	for range 20 {
		go func() { id, err := do(); answers <- answer{id, err} }()
	}
	for range 20 {
		switch a := <-answers; {
		case a.err != nil:
			failed++
		case !slices.Contains(all, a.id):
			all = append(all, a.id)
		}
	}
	return all, failed
}

// Twenty clients ask for a sandbox with one key, the daemon is killed at some time
// in between, and all of them ask again: there is one sandbox, and one microVM. The
// last time it is killed when the sandbox can be seen, and answers are under way.
func TestOneKeyMakesOneSandbox(t *testing.T) {
	data, run := small(t)
	flags := append([]string{"--on-exit", "keep"}, plain...)
	for _, delay := range []time.Duration{100 * time.Millisecond, time.Second, 15 * time.Second, 0} {
		key := "key-" + delay.String()
		d := startEmberd(t, data, run, flags...)
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			time.Sleep(delay)
			for delay == 0 {
				if list, err := d.List(t.Context()); err != nil || len(list) > 0 {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			_ = d.cmd.Process.Kill()
		}()
		told, cut := twenty(t, func() (string, error) { return d.CreateOnce(t.Context(), key, "shell") })
		if len(told) > 1 {
			t.Errorf("killed after %v: told %v", delay, told)
		}
		<-killed
		_ = d.cmd.Wait()

		d = startEmberd(t, data, run, flags...)
		ids, failed := twenty(t, func() (string, error) { return d.CreateOnce(t.Context(), key, "shell") })
		if len(ids) != 1 || failed > 0 {
			t.Fatalf("killed after %v: asked again, it is %v, and %d have no answer", delay, ids, failed)
		}
		if len(told) == 1 && told[0] != ids[0] {
			t.Errorf("killed after %v: %s became %s", delay, told[0], ids[0])
		}
		t.Logf("killed after %v: told %v but for %d clients, then %v", delay, told, cut, ids)
		if all := d.sandboxes(t); len(all) != 1 {
			t.Errorf("killed after %v: there are %v", delay, all)
		}
		if stats, err := d.Stats(t.Context()); err != nil || stats.Total.VMMs != 1 {
			t.Errorf("killed after %v: %d VMMs, %v", delay, stats.Total.VMMs, err)
		}
		_, err := d.CreateOnce(t.Context(), key, "python")
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusUnprocessableEntity {
			t.Errorf("the key with another body: %v", err)
		}
		d.runOnceAcrossAKill(t, ids[0], func() *emberd {
			d.end(t, syscall.SIGKILL)
			d = startEmberd(t, data, run, flags...)
			return d
		})
		if err := d.Delete(t.Context(), ids[0]); err != nil {
			t.Error(err)
		}
		if id, err := d.CreateOnce(t.Context(), key, "shell"); err != nil || id != ids[0] {
			t.Errorf("when it is gone, %s became %s, %v", ids[0], id, err)
		}
		d.end(t, syscall.SIGTERM)
	}
}

// runOnceAcrossAKill has the daemon killed while a program with a key runs, and
// asks the next one for it.
func (d *emberd) runOnceAcrossAKill(t *testing.T, id string, next func() *emberd) {
	t.Helper()
	prog := client.Program{Key: "k", Code: "echo run >>/root/runs; until [ -e /root/go ]; do sleep 0.1; done; echo out; exit 3"}
	cut := make(chan error)
	go func() { _, err := d.Exec(t.Context(), id, prog); cut <- err }()
	d.sh(t, id, "until [ -e /root/runs ]; do sleep 0.1; done")
	d = next()
	if err := <-cut; err == nil {
		t.Error("a daemon that was killed answered")
	}
	d.sh(t, id, "touch /root/go")
	all, failed := twenty(t, func() (string, error) {
		res, err := d.Exec(t.Context(), id, prog)
		if err == nil && (string(res.Stdout) != "out\n" || res.ExitCode != 3) {
			t.Errorf("%q, status %d", res.Stdout, res.ExitCode)
		}
		return res.ExecID, err
	})
	if runs := d.sh(t, id, "cat /root/runs"); len(all) != 1 || failed > 0 || runs != "run" {
		t.Errorf("the program ran %q as %v, and %d have no answer", runs, all, failed)
	}
}
