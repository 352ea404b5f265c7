package process

import (
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"
)

func TestWaited(t *testing.T) {
	if Waited(1<<22+1) != 0 {
		t.Error("a process that cannot be has waited")
	}
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = sleeper.Process.Kill(), sleeper.Wait() })

	// More threads than CPUs that want to run.
	before, slept := Waited(os.Getpid()), Waited(sleeper.Process.Pid)
	var spinning sync.WaitGroup
	stop := time.Now().Add(300 * time.Millisecond)
	for range 4 * runtime.NumCPU() {
		spinning.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for time.Now().Before(stop) {
			}
		})
	}
	old := runtime.GOMAXPROCS(4 * runtime.NumCPU())
	// Threads that have ended are not counted.
	time.Sleep(200 * time.Millisecond)
	waited := Waited(os.Getpid()) - before
	spinning.Wait()
	runtime.GOMAXPROCS(old)
	if waited < 100*time.Millisecond {
		t.Errorf("threads that spin waited for %v", waited)
	}
	if more := Waited(sleeper.Process.Pid) - slept; more > 100*time.Millisecond {
		t.Errorf("one that sleeps waited for %v", more)
	}
}
