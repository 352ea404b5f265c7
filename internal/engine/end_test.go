package engine

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
	"github.com/emberd/emberd/internal/x/fault"
)

// hold makes a step wait until it is let go.
func (f *fixture) hold(point string) (letGo func()) {
	held := make(chan struct{})
	f.faults.Do(point, func() error { <-held; return nil })
	letGo = sync.OnceFunc(func() { close(held) })
	f.t.Cleanup(letGo)
	return letGo
}

// A delete answers when the sandbox is out of reach and the record says so. As
// long as something is left of it, it counts.
func TestDeleteAnswersAtOnce(t *testing.T) {
	f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) { cfg.Capacity.Sandboxes = 1 })
	id := f.create()
	letGo := f.hold(FaultClear)
	if err := f.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get(id); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if list := f.List(); len(list) > 0 {
		t.Errorf("still listed: %v", list)
	}
	if err := f.Delete(t.Context(), id); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("a second delete: %v", err)
	}
	if records, err := f.cfg.Store.Load(); err != nil || len(records) != 1 || records[0].State != sandbox.Deleting {
		t.Errorf("on disk: %+v, %v", records, err)
	}
	if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"}); !errors.Is(err, sandbox.ErrQuota) {
		t.Errorf("a create in the meantime: %v", err)
	}
	letGo()
	f.awaitEmpty()
	f.create()
}

// A delete that cannot be recorded answers when nothing is left.
func TestDeleteThatCannotBeRecorded(t *testing.T) {
	f := newFixture(t)
	f.faults.Fail(FaultDelete)
	id := f.create()
	if err := f.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	f.checkEmpty()

	id = f.create()
	f.hold(FaultClear)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, ok := errors.AsType[*fault.Error](f.Delete(ctx, id)); !ok {
		t.Error("a delete that was not recorded succeeded before its end")
	}
	if _, err := f.Get(id); err != nil {
		t.Errorf("it is not there, but the record says that it is: %v", err)
	}
}

// A client that does not find a sandbox any more is right for good: as long as the
// record does not say that it is being deleted, it is found, and so it is by the
// next daemon if this one is killed.
func TestDeleteIsSeenWhenItIsRecorded(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	letGo := f.hold(FaultDelete)
	answers := make(chan error, 3)
	go func() { answers <- f.Delete(t.Context(), id) }()
	f.await("the delete", 5*time.Second, func() bool { sb, _ := f.find(id).snapshot(); return sb.State == sandbox.Deleting })
	if _, err := f.Get(id); err != nil {
		t.Errorf("get before it is recorded: %v", err)
	}
	if list := f.List(); len(list) != 1 || list[0].State != sandbox.Running {
		t.Errorf("list before it is recorded: %v", list)
	}
	go func() { answers <- f.Delete(t.Context(), id) }()
	go func() {
		_, err := f.Exec(t.Context(), id, sandbox.ExecRequest{Code: "true"})
		answers <- err
	}()
	select {
	case err := <-answers:
		t.Errorf("answered before it is recorded: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	letGo()
	deleted := 0
	for range cap(answers) {
		if err := <-answers; err == nil {
			deleted++
		} else if !errors.Is(err, sandbox.ErrNotFound) {
			t.Error(err)
		}
	}
	if deleted != 1 {
		t.Errorf("%d deletes succeeded", deleted)
	}
	f.awaitEmpty()
}

// What cannot be cleared is tried again, behind a delete as behind a create that
// failed, and the log says so.
func TestClearingIsTriedAgain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cause func(f *fixture)
	}{
		{"delete", func(f *fixture) {
			if err := f.Delete(f.t.Context(), f.create()); err != nil {
				f.t.Error(err)
			}
		}},
		{"failed create", func(f *fixture) {
			f.faults.Fail(FaultReady)
			if _, err := f.Create(f.t.Context(), sandbox.Spec{Pack: "shell"}); err == nil {
				f.t.Error("the create succeeded")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := &testenv.Log{}
			f := newFixture(t, func(cfg *Config, _ *provision.ColdConfig) { cfg.Log = slog.New(slog.NewTextHandler(log, nil)) })
			var tries atomic.Int32
			f.faults.Do(FaultClear, func() error {
				if tries.Add(1) <= 2 {
					return errors.New("not yet")
				}
				return nil
			})
			tt.cause(f)
			f.awaitEmpty()
			if n := tries.Load(); n != 3 {
				t.Errorf("tried %d times", n)
			}
			if !strings.Contains(log.String(), "not yet") {
				t.Errorf("the log is silent: %s", log)
			}
		})
	}
}

// Close tells what it cannot clear, and does it when it is called again.
func TestCloseGivesUpAndIsCalledAgain(t *testing.T) {
	f := newFixture(t)
	f.create()
	deleted := f.create()
	f.faults.Fail(FaultClear)
	if err := f.Delete(t.Context(), deleted); err != nil {
		t.Fatal(err)
	}
	if _, ok := errors.AsType[*fault.Error](f.Close(t.Context())); !ok {
		t.Error("close kept quiet about what is left")
	}
	if n := len(f.entriesNow()); n != 2 {
		t.Errorf("%d sandboxes are left in the table", n)
	}
	f.faults.Do(FaultClear, func() error { return nil })
	if err := f.Close(t.Context()); err != nil {
		t.Error(err)
	}
	f.checkEmpty()
}

// Of twenty deletes of one sandbox exactly one succeeds, whatever the VM does
// meanwhile.
func TestConcurrentDeletes(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	var (
		wg   sync.WaitGroup
		done atomic.Int32
	)
	for range 20 {
		wg.Go(func() {
			switch err := f.Delete(t.Context(), id); {
			case err == nil:
				done.Add(1)
			case !errors.Is(err, sandbox.ErrNotFound):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := done.Load(); n != 1 {
		t.Errorf("%d deletes succeeded", n)
	}
	f.awaitEmpty()
}
