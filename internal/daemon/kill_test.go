package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// What a test binary is told that is to be a daemon: its directory, and the step
// at which it kills itself.
const (
	dirEnv  = "EMBERD_TEST_DIR"
	stepEnv = "EMBERD_TEST_STEP"
)

// runVictim is a daemon that a test can kill, in a process of its own, if this
// is to be one. It prints its address.
func runVictim() {
	dir, step := os.Getenv(dirEnv), os.Getenv(stepEnv)
	if dir == "" {
		return
	}
	_ = os.Unsetenv(dirEnv)
	cfg := configIn(dir)
	cfg.OnExit, cfg.Templates, cfg.Faults = Keep, false, &fault.Set{}
	if step != "" { // one that a pool left would be created without a step
		cfg.Pool = map[string]pool.Bounds{"shell": {Min: 0, Max: 1}} // which a create has it fill
	}
	cfg.Faults.Do(step, func() error {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	})
	d, err := New(context.Background(), cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(d.Addr())
	_ = d.Run(context.Background())
}

// fakesIn are the fakes that work in directories below dir.
func fakesIn(t *testing.T, dir string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, dir+"/vm-") {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

// Whatever a daemon was doing when it was killed, the next one has a sandbox whole
// or nothing of it, and loses none that a client was told of.
func TestDaemonKilledAtEachStep(t *testing.T) {
	ofDelete := []string{engine.FaultDelete, engine.FaultClear}
	steps := slices.Concat(engine.FaultPoints, provision.FaultPoints, firecracker.FaultPoints, pool.FaultPoints,
		[]string{engine.FaultRecover, provision.FaultAdopt}, ofDelete)
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			cfg := fakeConfig(t)
			dir := cfg.Launcher.(*fctest.Launcher).Dir
			// One sandbox is there before.
			first := startVictim(t, dir, "")
			whole, err := first.Create(t.Context(), "shell")
			if err != nil {
				t.Fatal(err)
			}
			first.kill(t)

			second := startVictim(t, dir, step)
			told, err := second.Create(t.Context(), "shell")
			deletes := slices.Contains(ofDelete, step)
			deleted := deletes && err == nil && second.Delete(t.Context(), told) == nil
			second.awaitEnd(t)

			cfg.Templates = false
			d, end := runUntil(t, cfg)
			awaitReady(t, d)
			c := client.New(d.Addr())
			list, err := c.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			listed := func(id string) bool {
				return slices.ContainsFunc(list, func(sb rest.Sandbox) bool { return sb.ID == id })
			}
			if !listed(whole) {
				t.Error("the sandbox that was there before is lost")
			}
			if listed(told) && deleted {
				t.Error("a delete that was answered is undone")
			}
			if told != "" && !deletes && !listed(told) {
				t.Error("a create that was answered is undone")
			}
			for _, sb := range list {
				if res, err := c.Exec(t.Context(), sb.ID, client.Program{Code: "echo it goes on"}); err != nil || string(res.Stdout) != "it goes on\n" {
					t.Errorf("%q, %v", res.Stdout, err)
				}
			}
			await(t, "the VMMs of what is listed alone", func() bool { return len(fakesIn(t, dir)) == len(list) })
			if again, err := c.Create(t.Context(), "shell"); err != nil {
				t.Errorf("create %s: %v", again, err)
			}
			end()
			await(t, "no VMM", func() bool { return len(fakesIn(t, dir)) == 0 })
			for _, at := range []string{dir, cfg.RunDir.Sandboxes(), cfg.RunDir.VMs()} {
				entries, err := os.ReadDir(at)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					if _, vm := sandbox.ParseVMID(e.Name()); vm || at != dir {
						t.Errorf("left behind: %s", filepath.Join(at, e.Name()))
					}
				}
			}
		})
	}
}

// victim is a daemon in a process of its own.
type victim struct {
	*client.Client
	cmd *exec.Cmd
}

func startVictim(t *testing.T, dir, step string) *victim {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{cmd: exec.Command(self)}
	v.cmd.Env = append(os.Environ(), dirEnv+"="+dir, stepEnv+"="+step)
	v.cmd.Stderr = os.Stderr
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.kill(t) })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the daemon that is to be killed does not start: %v", err)
	}
	v.Client = client.New(strings.TrimSpace(line))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := v.Ready(t.Context())
		if _, answered := errors.AsType[*client.Error](err); !answered {
			return v // it is ready, or was killed before
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon that is to be killed does not become ready: %v", err)
		}
	}
}

func (v *victim) kill(t *testing.T) {
	t.Helper()
	if err := v.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = v.cmd.Wait()
}

// awaitEnd waits until the daemon has killed itself.
func (v *victim) awaitEnd(t *testing.T) {
	t.Helper()
	hung := time.AfterFunc(20*time.Second, func() { _ = v.cmd.Process.Kill() })
	_ = v.cmd.Wait()
	if !hung.Stop() {
		t.Error("the daemon never came to this step")
	}
}
