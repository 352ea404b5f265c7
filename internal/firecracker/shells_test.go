package firecracker_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

func TestMain(m *testing.M) {
	fctest.Main()
	goleak.VerifyTestMain(m)
}

func newShells(t *testing.T, n int, faults *fault.Set) (*firecracker.Shells, *fctest.Launcher) {
	t.Helper()
	return newShellsBehind(t, n, func(<-chan struct{}) {}, faults)
}

func newShellsBehind(t *testing.T, n int, standBack func(<-chan struct{}), faults *fault.Set) (*firecracker.Shells, *fctest.Launcher) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") //nolint:usetesting // its sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	l := &fctest.Launcher{Dir: dir}
	s := firecracker.NewShells(t.Context(), l, n, standBack, slog.New(slog.DiscardHandler), faults)
	t.Cleanup(func() {
		s.Close()
		if pids := l.Running(); len(pids) > 0 {
			t.Errorf("left running: %v", pids)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		_ = os.RemoveAll(dir)
	})
	return s, l
}

// await waits until f holds.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}

func TestShellsAreUsedOnceAndReplaced(t *testing.T) {
	s, _ := newShells(t, 2, nil)
	await(t, "two shells", func() bool { return s.Ready() == 2 })
	seen := map[sandbox.VMID]bool{}
	for range 5 {
		var began sandbox.VMID
		begin := func(id sandbox.VMID) error { began = id; return nil }
		err := s.Use(t.Context(), begin, func(shell *firecracker.Shell) error {
			if shell.ID() != began || seen[began] {
				t.Errorf("shell %s, begun %s, used before: %v", shell.ID(), began, seen[began])
			}
			seen[began] = true
			return shell.Kill(t.Context())
		})
		if err != nil {
			t.Error(err)
		}
	}
	await(t, "two shells", func() bool { return s.Ready() == 2 })
}

// While others need the CPU no shell is launched ahead, and whoever needs one has
// one launched all the same.
func TestLaunchesStandBack(t *testing.T) {
	lull := make(chan struct{})
	s, l := newShellsBehind(t, 1, func(stop <-chan struct{}) {
		select {
		case <-lull:
		case <-stop:
		}
	}, nil)
	err := s.Use(t.Context(), func(sandbox.VMID) error { return nil }, func(shell *firecracker.Shell) error { return shell.Kill(t.Context()) })
	if err != nil {
		t.Error(err)
	}
	time.Sleep(100 * time.Millisecond)
	if s.Ready() != 0 || len(l.Running()) != 0 {
		t.Errorf("%d shells, VMMs: %v", s.Ready(), l.Running())
	}
	close(lull)
	await(t, "shell", func() bool { return s.Ready() == 1 })
	held, _ := newShellsBehind(t, 1, func(stop <-chan struct{}) { <-stop }, nil)
	held.Close() // does not wait for a lull
}

func TestRefusedBeginLeavesNothing(t *testing.T) {
	for _, n := range []int{0, 1} {
		s, l := newShells(t, n, nil)
		await(t, "shell", func() bool { return s.Ready() == n })
		no := errors.New("no")
		err := s.Use(t.Context(), func(sandbox.VMID) error { return no }, func(*firecracker.Shell) error {
			t.Error("a shell was used")
			return nil
		})
		if !errors.Is(err, no) {
			t.Errorf("got %v", err)
		}
		if n == 0 && len(l.Running()) > 0 {
			t.Errorf("VMMs: %v", l.Running())
		}
	}
}

func TestDeadShellIsReplaced(t *testing.T) {
	s, l := newShells(t, 1, nil)
	await(t, "shell", func() bool { return s.Ready() == 1 })
	old := l.Running()[0]
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "other shell", func() bool {
		now := l.Running()
		return s.Ready() == 1 && len(now) == 1 && now[0] != old
	})
}

// A launch that fails is tried again, and until then whoever needs a shell
// launches one.
func TestShellsThatCannotBeLaunched(t *testing.T) {
	faults := &fault.Set{}
	faults.Fail(firecracker.FaultAPI)
	s, _ := newShells(t, 1, faults)
	begin := func(sandbox.VMID) error { return nil }
	kill := func(shell *firecracker.Shell) error { return shell.Kill(context.Background()) }
	if err := s.Use(t.Context(), begin, kill); err == nil {
		t.Error("a shell was launched")
	}
	faults.Do(firecracker.FaultAPI, func() error { return nil })
	if err := s.Use(t.Context(), begin, kill); err != nil {
		t.Error(err)
	}
	await(t, "shell", func() bool { return s.Ready() == 1 })
}
