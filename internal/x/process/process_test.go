package process

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// settled is the ID of a child, once it executes what it was started for.
func settled(t *testing.T, pid int) ID {
	t.Helper()
	self, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if id, err := Of(pid); err == nil && id.Exe != self.Exe {
			return id
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the child executes nothing")
	return ID{}
}

func TestFoundWaitedForAndKilled(t *testing.T) {
	cmd := start(t)
	h, err := Find(settled(t, cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	ended := make(chan error, 1)
	go func() { ended <- h.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("the process has ended already: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	for range 2 {
		if err := h.Kill(); err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if err := h.Kill(); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}

func TestCloseEndsTheWait(t *testing.T) {
	cmd := start(t)
	h, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Wait() }()
	time.Sleep(10 * time.Millisecond)
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("the process lives, and was said to have ended")
	}
}

func TestAnotherProcessIsNotIt(t *testing.T) {
	cmd := start(t)
	id := settled(t, cmd.Process.Pid)
	for name, spoil := range map[string]func(*ID){
		"began at another time": func(id *ID) { id.Started-- },
		"executes another file": func(id *ID) { id.Exe.Ino++ },
		"another device":        func(id *ID) { id.Exe.Dev++ },
		"no number":             func(id *ID) { id.PID = 0 },
		"a negative number":     func(id *ID) { id.PID = -1 },
	} {
		other := id
		spoil(&other)
		if _, err := Find(other); !errors.Is(err, ErrNotIt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// One that nobody has waited for is still there, and has ended.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h, err := Open(id.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close() }()
	if err := h.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(id); !errors.Is(err, ErrNotIt) {
		t.Errorf("ended: got %v", err)
	}
}
