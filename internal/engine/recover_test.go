package engine

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
)

// end has the daemon leave. What is left is changed, and found by the next one.
func (f *fixture) end() {
	f.t.Helper()
	f.Leave(f.t.Context())
	if err := f.records.Close(); err != nil {
		f.t.Fatal(err)
	}
}

// restart has the daemon leave, and another one take over.
func (f *fixture) restart() {
	f.t.Helper()
	f.end()
	f.begin()
	f.Recover(f.t.Context())
}

// output is what code prints in a sandbox.
func (f *fixture) output(id sandbox.ID, code string) string {
	f.t.Helper()
	res, err := f.Exec(f.t.Context(), id, sandbox.ExecRequest{Code: code})
	if err != nil {
		f.t.Fatal(err)
	}
	return string(res.Stdout)
}

func (f *fixture) pids() []int {
	pids := f.launcher.Running()
	slices.Sort(pids)
	return pids
}

// vmRecord is the record of the microVM of a sandbox.
func (f *fixture) vmRecord(id sandbox.ID) string {
	f.t.Helper()
	vm, err := f.Get(id)
	if err != nil {
		f.t.Fatal(err)
	}
	return filepath.Join(f.run.VMs(), string(vm.VM)+".json")
}

func TestSandboxesOutliveTheDaemon(t *testing.T) {
	heard := &heard{}
	f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Events = heard })
	first, second := f.create(), f.create()
	before, vmms := f.List(), f.pids()
	for range 3 {
		f.end()
		f.begin()
		if err := f.Ready(); !errors.Is(err, sandbox.ErrStarting) {
			t.Errorf("before it has recovered it is ready: %v", err)
		}
		if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"}); !errors.Is(err, sandbox.ErrStarting) {
			t.Errorf("before it has recovered it creates: %v", err)
		}
		f.Recover(t.Context())
		if err := f.Ready(); err != nil {
			t.Error(err)
		}
	}
	if got := f.pids(); !slices.Equal(got, vmms) {
		t.Errorf("VMMs %v became %v", vmms, got)
	}
	after := f.List()
	for i := range after {
		if moved := after[i].ExpiresAt.Sub(before[i].ExpiresAt).Abs(); moved > 100*time.Millisecond {
			t.Errorf("the deadline moved by %v", moved)
		}
		after[i].ExpiresAt, before[i].ExpiresAt = time.Time{}, time.Time{}
		after[i].IdleExpiresAt, before[i].IdleExpiresAt = time.Time{}, time.Time{}
	}
	if !slices.Equal(after, before) {
		t.Errorf("%+v\nbecame\n%+v", before, after)
	}
	for _, id := range []sandbox.ID{first, second} {
		if got := f.output(id, "echo $PPID"); got == "" {
			t.Error("it runs nothing")
		}
	}
	if promised, _ := f.Promised(); promised.Sandboxes != 2 {
		t.Errorf("%d sandboxes count", promised.Sandboxes)
	}
	if err := f.Delete(t.Context(), first); err != nil {
		t.Error(err)
	}
	third := f.create()
	if third == second || len(f.List()) != 2 {
		t.Errorf("%v", f.List())
	}
	if n := len(slices.DeleteFunc(heard.words(), func(w string) bool { return w != "adopted" })); n != 6 {
		t.Errorf("%d adoptions were told of: %v", n, heard.words())
	}
}

// A sandbox whose VM cannot be gone on with is lost: it is gone, with everything
// that it had, and another process that has its number is left alone.
func TestLostSandboxes(t *testing.T) {
	for name, spoil := range map[string]func(f *fixture, record string){
		"its VMM ended": func(f *fixture, _ string) {
			for _, pid := range f.pids() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			f.await("its end", 5*time.Second, func() bool { return len(f.pids()) == 0 })
		},
		"another process has its number": func(f *fixture, record string) {
			stranger := exec.Command("sleep", "60")
			stranger.Args[0] = "firecracker"
			if err := stranger.Start(); err != nil {
				f.t.Fatal(err)
			}
			f.t.Cleanup(func() {
				if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
					f.t.Errorf("the stranger is gone: %v", err)
				}
				_ = stranger.Process.Kill()
				_ = stranger.Wait()
			})
			for _, pid := range f.pids() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				f.await("its end", 5*time.Second, func() bool { return len(f.pids()) == 0 })
				replace(f.t, record, `"pid":`+strconv.Itoa(pid), `"pid":`+strconv.Itoa(stranger.Process.Pid))
			}
		},
		"its agent knows another secret": func(f *fixture, record string) {
			text, err := os.ReadFile(record)
			if err != nil {
				f.t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), `"secret":"`)
			replace(f.t, record, rest[:4], "AAAA")
		},
		"its VMM hangs": func(f *fixture, _ string) {
			for _, pid := range f.pids() {
				_ = syscall.Kill(pid, syscall.SIGSTOP)
			}
		},
		"its record is gone": func(f *fixture, record string) {
			if err := os.Remove(record); err != nil {
				f.t.Fatal(err)
			}
		},
		"the adoption fails": func(f *fixture, _ string) { f.faults.Fail(provision.FaultAdopt) },
		"its turn fails":     func(f *fixture, _ string) { f.faults.Fail(FaultRecover) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			heard := &heard{}
			f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Events = heard })
			record := f.vmRecord(f.create())
			f.end()
			spoil(f, record)
			f.begin()
			began := time.Now()
			f.Recover(t.Context())
			if took := time.Since(began); took > adoptTimeout+2*time.Second {
				t.Errorf("it took %v", took)
			}
			f.await("it is gone", 10*time.Second, func() bool { return len(f.pids()) == 0 && len(f.entriesNow()) == 0 })
			f.checkEmpty()
			if !slices.Contains(heard.words(), "lost while_away") {
				t.Errorf("told: %v", heard.words())
			}
			f.create()
		})
	}
}

// What was being made or taken down when the daemon ended is taken down.
func TestUnfinishedSandboxesAreCleared(t *testing.T) {
	for _, state := range []sandbox.State{sandbox.Creating, sandbox.Deleting} {
		t.Run(string(state), func(t *testing.T) {
			f := newFixture(t)
			sb, err := f.Get(f.create())
			if err != nil {
				t.Fatal(err)
			}
			f.end()
			sb.State = state
			if err := (f.records).Put(sb); err != nil {
				t.Fatal(err)
			}
			f.begin()
			f.Recover(t.Context())
			f.await("it is gone", 5*time.Second, func() bool { return len(f.pids()) == 0 })
			f.checkEmpty()
		})
	}
}

// A record that cannot be read is nobody's reason to end a VM.
func TestVMsOfDamagedRecordsAreLeftAlone(t *testing.T) {
	for _, which := range []string{"the sandbox's", "the microVM's"} {
		t.Run(which, func(t *testing.T) {
			f := newFixture(t)
			id, whole := f.create(), f.create()
			vmms := f.pids()
			path := filepath.Join(f.run.Sandboxes(), string(id)+".json")
			if which == "the microVM's" {
				path = f.vmRecord(id)
			}
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f.end()
			if err := os.WriteFile(path, good[:len(good)/2], 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				f.begin()
				f.Recover(t.Context())
				if got := f.pids(); !slices.Equal(got, vmms) {
					t.Errorf("VMMs %v became %v", vmms, got)
				}
				if list := f.List(); len(list) != 1 || list[0].ID != whole {
					t.Errorf("listed: %v", list)
				}
				f.end()
			}
			// A person who mends it has the sandbox back.
			if err := errors.Join(os.WriteFile(path, good, 0o600), os.Remove(path+".corrupt")); err != nil {
				t.Fatal(err)
			}
			f.begin()
			f.Recover(t.Context())
			if list := f.List(); len(list) != 2 {
				t.Errorf("listed: %v", list)
			}
		})
	}
}

// However records are damaged while no daemon runs, no VM is ended by it: each
// sandbox is gone on with, or waits for a person to mend its record.
func TestDamagedRecordsEndNoVM(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Spares = &shelf{} })
	var ids []sandbox.ID
	good := make(map[string][]byte)
	for range 4 {
		ids = append(ids, f.create())
	}
	for _, dir := range []string{f.run.Sandboxes(), f.run.VMs()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if good[path], err = os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	vmms := f.pids()
	for round := range 50 {
		f.end()
		files := slices.Sorted(maps.Keys(good))
		for range []int{1, 3, 1000}[random.IntN(3)] {
			path := files[random.IntN(len(files))]
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[random.IntN(len(b))] ^= byte(1 + random.IntN(255))
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f.begin()
		f.Recover(t.Context())
		if got := f.pids(); !slices.Equal(got, vmms) {
			t.Fatalf("round %d: VMMs %v became %v", round, vmms, got)
		}
		for _, sb := range f.List() {
			if !slices.Contains(ids, sb.ID) {
				t.Errorf("round %d: %s is new", round, sb.ID)
			}
		}
		f.end()
		for path, text := range good { // a person mends them
			_ = os.Remove(path + ".corrupt")
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f.begin()
		f.Recover(t.Context())
		if list := f.List(); len(list) != len(ids) {
			t.Fatalf("round %d: mended, there are %v", round, list)
		}
	}
}

// shelf is a [Spares] that takes what it can get.
type shelf struct {
	full bool
	mu   sync.Mutex
	got  []*provision.VM
}

func (s *shelf) Wants(rec store.VM) bool { return rec.Pack == "shell" }

func (s *shelf) Adopt(_ store.VM, vm *provision.VM) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full {
		s.got = append(s.got, vm)
	}
	return !s.full
}

func TestVMsThatNoSandboxHasAreSpares(t *testing.T) {
	for _, full := range []bool{false, true} {
		spares := &shelf{full: full}
		f := newFixture(t, func(c *Config, _ *provision.ColdConfig) { c.Spares = spares })
		p, err := f.cfg.Packs.Get("shell")
		if err != nil {
			t.Fatal(err)
		}
		limits, err := f.cfg.Limits.Resolve(sandbox.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		vm, err := f.cfg.Provisioner.Provision(t.Context(), provision.Request{
			Pack: p, Limits: limits, Ahead: true, Begin: func(sandbox.VMID) error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		id := f.create()
		vm.Leave()
		f.restart()
		if full {
			f.await("it is gone", 5*time.Second, func() bool { return len(f.pids()) == 1 })
			continue
		}
		if len(spares.got) != 1 || spares.got[0].ID != vm.ID || len(f.pids()) != 2 {
			t.Fatalf("spares: %v, VMMs: %v", spares.got, f.pids())
		}
		if err := f.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
		if err := spares.got[0].Kill(t.Context()); err != nil {
			t.Error(err)
		}
		f.awaitEmpty()
	}
}

// A sandbox lives for as long as it was promised, in the time that really
// passes: no clock that is set while the daemon is away changes that.
func TestDeadlinesAcrossARestart(t *testing.T) {
	for name, jump := range map[string]time.Duration{"the clock is right": 0, "an hour ahead": time.Hour, "an hour behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			wall, up := time.Now().Round(0), 100*time.Hour
			pass := func(real, set time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				wall, up = wall.Add(real+set), up+real
			}
			f := newFixture(t, func(c *Config, _ *provision.ColdConfig) {
				c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return wall }
				c.Uptime = func() time.Duration { mu.Lock(); defer mu.Unlock(); return up }
			})
			f.createWith(sandbox.Limits{Lifetime: 30 * time.Second})
			pass(5*time.Second, 0)
			f.end()
			pass(20*time.Second, jump)
			f.begin()
			f.Recover(t.Context())
			pass(4*time.Second, 0)
			f.lookAgain()
			time.Sleep(50 * time.Millisecond)
			if len(f.List()) != 1 {
				t.Error("it ended early")
			}
			pass(2*time.Second, 0)
			f.lookAgain()
			f.awaitEmpty()
		})
	}
}

func TestLeaveDrains(t *testing.T) {
	f := newFixture(t)
	id := f.create()
	results := make(chan string, 1)
	go func() {
		res, err := f.Exec(t.Context(), id, sandbox.ExecRequest{Code: "sleep 1; echo done"})
		if err != nil {
			results <- err.Error()
			return
		}
		results <- string(res.Stdout)
	}()
	f.awaitExecs(id, 1)
	left := make(chan struct{})
	go func() { defer close(left); f.Leave(context.Background()) }()
	f.await("refusal", 5*time.Second, func() bool { return f.Ready() != nil })
	if _, err := f.Create(t.Context(), sandbox.Spec{Pack: "shell"}); !errors.Is(err, sandbox.ErrClosing) {
		t.Errorf("create while it drains: %v", err)
	}
	if got := <-results; got != "done\n" {
		t.Errorf("the program that ran: %q", got)
	}
	<-left
	if err := f.Delete(t.Context(), id); !errors.Is(err, sandbox.ErrClosing) {
		t.Errorf("delete of what is the next daemon's: %v", err)
	}
	if _, err := f.Exec(t.Context(), id, sandbox.ExecRequest{Code: "true"}); !errors.Is(err, sandbox.ErrClosing) {
		t.Errorf("exec in what is the next daemon's: %v", err)
	}
	f.end()
	f.begin()
	f.Recover(t.Context())
	if len(f.List()) != 1 {
		t.Errorf("listed: %v", f.List())
	}
}

// A daemon that is asked to end while it starts takes nothing down.
func TestRecoveryThatIsBrokenOff(t *testing.T) {
	f := newFixture(t)
	f.create()
	f.end()
	f.begin()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	f.Recover(ended)
	if err := f.Ready(); !errors.Is(err, sandbox.ErrStarting) {
		t.Errorf("ready: %v", err)
	}
	f.restart()
	if len(f.List()) != 1 {
		t.Errorf("listed: %v", f.List())
	}
}

func replace(t *testing.T, path, old, now string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.ReplaceAll(string(text), old, now)
	if changed == string(text) {
		t.Fatalf("%s holds no %q", path, old)
	}
	changed = regexp.MustCompile(`"sum":"[^"]*",`).ReplaceAllString(changed, "") // as whoever mends a record does
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}
