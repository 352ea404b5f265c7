package reaper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/guest/reaper"
)

// asInit makes the test binary behave like PID 1 instead of running tests: a
// reaper that owns every child must not live in the tests' own process.
const asInit = "EMBERD_TEST_AS_INIT"

func TestMain(m *testing.M) {
	if os.Getenv(asInit) != "" {
		if err := beInit(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// TestInit: in a process that adopts orphans, none stays a zombie and no exit
// code gets lost or mixed up, while hundreds of both end at the same time.
func TestInit(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), asInit+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

const (
	programs = 100
	// Each program leaves this many orphans, which end while others start.
	orphans = 5
)

func beInit() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := reaper.NewInit()
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	defer running.Wait()
	defer cancel()

	errs := make(chan error, programs)
	for i := range programs {
		go func() { errs <- runOne(r, i) }()
	}
	var all []error
	for range programs {
		all = append(all, <-errs)
	}
	return errors.Join(append(all, waitChildless(20*time.Second))...)
}

// runOne runs a program that double-forks orphans and then ends in its own way.
func runOne(r *reaper.Reaper, i int) error {
	script := fmt.Sprintf("for i in %s; do (sleep 0.0%d & ) ; done; exit %d", strings.Repeat("x ", orphans), i%7+1, i)
	if i%10 == 0 {
		script = "kill -9 $$"
	}
	c, err := r.Start("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Env: os.Environ()})
	if err != nil {
		return err
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		return fmt.Errorf("program %d: its end was lost", i)
	}
	s := c.Status()
	switch {
	case i%10 == 0 && (s.Exited() || s.Signal() != syscall.SIGKILL):
		return fmt.Errorf("program %d: status %#x, want a SIGKILL", i, s)
	case i%10 != 0 && (!s.Exited() || s.ExitStatus() != i):
		return fmt.Errorf("program %d: status %#x, want exit %d", i, s, i)
	}
	return nil
}

// waitChildless waits until this process has no children, zombies included.
func waitChildless(timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		left, err := children()
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d children are left: %v", len(left), left)
		}
	}
}

func children() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// The name, in brackets, may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if parent, _ := strconv.Atoi(string(fields[1])); parent == os.Getpid() {
			found = append(found, pid)
		}
	}
	return found, nil
}

func TestStartFails(t *testing.T) {
	for name, r := range map[string]*reaper.Reaper{"alone": reaper.New(), "init": reaper.NewInit()} {
		if _, err := r.Start("/no/such/program", []string{"x"}, &os.ProcAttr{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// A reaper that does not own the process's children leaves the others alone.
func TestAloneStealsNothing(t *testing.T) {
	r := reaper.New()
	other := exec.CommandContext(t.Context(), "/bin/sh", "-c", "exit 9")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := r.Start("/bin/sh", []string{"sh", "-c", "exit 8"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if got := c.Status().ExitStatus(); got != 8 {
		t.Errorf("own child's status is %d, want 8", got)
	}
	var exit *exec.ExitError
	if err := other.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("other child: %v, want exit status 9", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
}
