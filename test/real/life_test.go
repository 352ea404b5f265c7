package real

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/jail"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/x/fault"
)

func digest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func TestWritesGoWithTheSandbox(t *testing.T) {
	h := newHost(t)
	image := h.cfg.DataDir.PackRootfs("shell")
	before := digest(t, image)
	const write = "echo mine >/etc/passwd && echo mine >/new && rm -r /usr/share && echo done"
	const look = "cat /new; grep -c root /etc/passwd; ls -d /usr/share"

	id := h.create(t, "shell")
	if res, err := h.Exec(t.Context(), id, client.Program{Code: write}); err != nil || string(res.Stdout) != "done\n" {
		t.Fatalf("write: %q %q, %v", res.Stdout, res.Stderr, err)
	}
	if err := h.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	next := h.create(t, "shell")
	res, err := h.Exec(t.Context(), next, client.Program{Code: look})
	if err != nil || string(res.Stdout) != "1\n/usr/share\n" {
		t.Errorf("the next sandbox sees %q %q, %v", res.Stdout, res.Stderr, err)
	}
	if after := digest(t, image); after != before {
		t.Errorf("the image's digest is %s, was %s", after, before)
	}
}

func TestUnknownPackStartsNothing(t *testing.T) {
	h := newHost(t)
	before := takeState(t)
	_, err := h.Create(t.Context(), "ruby")
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Status != 400 || e.Message != `unknown language pack: "ruby"` {
		t.Errorf("got %v", err)
	}
	checkState(t, before)
}

func TestSilentGuestIsGivenUp(t *testing.T) {
	const budget = 40 * time.Second
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, func(c *daemon.Config) { c.Init, c.BootTimeout = self, budget })
	before := takeState(t)
	began := time.Now()
	_, err = h.Create(t.Context(), "shell")
	took := time.Since(began)
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Code != "boot_failed" || e.Status != 503 {
		t.Errorf("got %v, want boot_failed", err)
	}
	if took < budget-time.Second || took > budget+2*time.Second {
		t.Errorf("gave up after %v, want %v", took, budget)
	}
	if !strings.Contains(h.log.String(), "this guest says nothing more") {
		t.Error("the log does not hold the console's tail")
	}
	if n := strings.Count(h.log.String(), "booting it again"); n != 1 {
		t.Errorf("tried again %d times, want once", n)
	}
	checkState(t, before)
}

func isNotFound(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Status == 404
}

func TestDeleteTwice(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "shell")
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for range 5 {
		wg.Go(func() {
			err := h.Delete(t.Context(), id)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	if !slices.Contains(errs, nil) {
		t.Errorf("nobody deleted it: %v", errs)
	}
	for _, err := range errs {
		if err != nil && !isNotFound(err) {
			t.Error(err)
		}
	}
	if err := h.Delete(t.Context(), id); !isNotFound(err) {
		t.Errorf("delete of a deleted sandbox: %v, want 404", err)
	}
}

// A hundred lives, one after the other: no boot stalls, and the host and the
// daemon stay as they were.
func TestHundredLives(t *testing.T) {
	const n = 100
	h := newHost(t)
	var creates []time.Duration
	life := func() {
		began := time.Now()
		id := h.create(t, "shell")
		creates = append(creates, time.Since(began))
		res, err := h.Exec(t.Context(), id, client.Program{Code: "echo $((6*7))"})
		if err != nil || string(res.Stdout) != "42\n" {
			t.Fatalf("%q %q, %v", res.Stdout, res.Stderr, err)
		}
		if err := h.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	life() // opens the connection
	before, files := takeState(t), openFiles(t)
	for range n - 1 {
		life()
		checkState(t, before)
	}
	if now := openFiles(t); now > files {
		t.Errorf("%d open files, were %d", now, files)
	}
	entries, err := os.ReadDir(filepath.Join(h.cfg.DataDir.Jails(), "firecracker"))
	if err != nil || len(entries) > 0 {
		t.Errorf("jails: %v, %v", entries, err)
	}
	if stalled := strings.Count(h.log.String(), "booting it again"); stalled > 0 {
		t.Errorf("%d of %d boots stalled", stalled, n)
	}
	t.Logf("create: p50 %v, slowest %v", median(creates), slices.Max(creates))
}

func TestCreateGivenUpLeavesNothing(t *testing.T) {
	h := newHost(t)
	before := takeState(t)
	for _, after := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 1500 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		if _, err := h.Create(ctx, "shell"); err == nil {
			t.Errorf("a create given up after %v succeeded", after)
		}
		cancel()
		checkState(t, before)
	}
	if list, err := h.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("listed: %v, %v", list, err)
	}
}

// Each step of create that fails is undone, whichever it is.
func TestEachStepOfCreateIsUndone(t *testing.T) {
	faults := &fault.Set{}
	h := newHost(t, func(c *daemon.Config) { c.Faults = faults })
	if _, err := h.List(t.Context()); err != nil { // opens the connection
		t.Fatal(err)
	}
	before, files := takeState(t), openFiles(t)
	for _, point := range slices.Concat(engine.FaultPoints, provision.FaultPoints, firecracker.FaultPoints, jail.FaultPoints) {
		t.Run(point, func(t *testing.T) {
			hit := false
			faults.Do(point, func() error { hit = true; return &fault.Error{Point: point} })
			defer faults.Do(point, func() error { return nil })
			if _, err := h.Create(t.Context(), "shell"); err == nil {
				t.Error("create succeeded")
			}
			if !hit {
				t.Error("the step was never reached")
			}
			checkState(t, before)
			if list, err := h.List(t.Context()); err != nil || len(list) > 0 {
				t.Errorf("listed: %v, %v", list, err)
			}
		})
	}
	if now := openFiles(t); now > files {
		t.Errorf("%d open files, were %d", now, files)
	}
	id := h.create(t, "shell") // and the daemon still works
	if err := h.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// A daemon that ends deletes its sandboxes, and one that was killed is cleared
// up after by the next.
func TestShutdownEndsEverySandbox(t *testing.T) {
	h := newHost(t)
	before := takeState(t)
	for range 3 {
		h.create(t, "shell")
	}
	failed := make(chan error, 1)
	go func() {
		_, err := h.Create(context.WithoutCancel(t.Context()), "shell")
		failed <- err
	}()
	time.Sleep(300 * time.Millisecond)
	h.stop()
	if err := <-failed; err == nil {
		t.Error("a create outlived its daemon")
	}
	checkState(t, before)
}
