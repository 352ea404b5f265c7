package machine

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
)

// patience bounds waits for other processes on a loaded host.
const patience = 30 * time.Second

// newMachine returns a machine whose QEMU is fake, and what to start it with.
func newMachine(t *testing.T, fault string) (Machine, Config) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	programs := filepath.Join(dir, "programs")
	cfg := Config{
		Listen:     freeAddress(t),
		Data:       paths.Data(filepath.Join(dir, "data")),
		Bin:        filepath.Join(dir, "bin"),
		Supervisor: []string{self, superviseArg},
	}
	write(t, cfg.Data.Vmlinuz(), "kernel")
	write(t, cfg.Data.Vmlinux(), "kernel")
	write(t, filepath.Join(cfg.Data.MachineModules(), "modules.builtin"), builtins())
	write(t, filepath.Join(cfg.Data.GuestModules(), "modules.builtin"), "")
	write(t, cfg.Data.Firecracker(), "vmm")
	write(t, cfg.Data.Jailer(), "jailer")
	write(t, cfg.Data.PackRootfs("shell"), "rootfs")
	for _, name := range binaries() {
		write(t, filepath.Join(cfg.Bin, name), name)
	}
	if err := os.Mkdir(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(programs, qemuProgram)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	t.Setenv(fakeEnv, fault)
	m := Machine{Name: "test", Disks: filepath.Join(dir, "disks"), Run: filepath.Join(dir, "run")}
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil && !errors.Is(err, ErrNotRunning) {
			t.Error(err)
		}
	})
	return m, cfg
}

// builtins has the machine's kernel need no module files.
func builtins() string {
	var list strings.Builder
	for _, name := range kernel.MachineModules() {
		fmt.Fprintf(&list, "kernel/%s.ko\n", name)
	}
	return list.String()
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// program makes a static executable, as far as anybody looks.
func program(t *testing.T) string {
	t.Helper()
	var buf bytes.Buffer
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Ehsize: 64,
	}
	if err := binary.Write(&buf, binary.LittleEndian, header); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	write(t, path, buf.String()+strings.Repeat("x", 200_000))
	return path
}

func status(t *testing.T, m Machine) Status {
	t.Helper()
	s, err := m.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nothingLeft checks that the machine consists of its disks, and that the
// processes it had are gone.
func nothingLeft(t *testing.T, m Machine, had Status) {
	t.Helper()
	if s := status(t, m); s.State != Stopped {
		t.Errorf("machine is %s", s.State)
	}
	if _, err := os.Stat(m.Run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("run directory: %v", err)
	}
	if lock, err := m.lock(); err != nil {
		t.Error(err)
	} else {
		lock.Close()
	}
	if leftovers, _ := filepath.Glob(filepath.Join(m.Disks, ".*")); len(leftovers) > 0 {
		t.Errorf("left in the disks' directory: %v", leftovers)
	}
	goneSoon(t, had.QEMUPID)
	goneSoon(t, had.SupervisorPID)
}

// goneSoon waits until the process pid has ended. A zombie has.
func goneSoon(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(patience); pid != 0; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is still there", pid)
		}
	}
}

func get(address, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestLife(t *testing.T) {
	m, cfg := newMachine(t, "")
	if s := status(t, m); s.State != Stopped {
		t.Fatalf("before the first start the machine is %s", s.State)
	}
	if _, err := m.Exec(t.Context(), Program{Path: program(t)}, agent.Stdio{}); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("exec without a machine: %v", err)
	}
	var steps []string
	if err := m.Start(t.Context(), cfg, func(step string) { steps = append(steps, step) }); err != nil {
		t.Fatal(err)
	}
	if len(steps) < 4 {
		t.Errorf("reported only %q", steps)
	}
	up := status(t, m)
	if up.State != Running || up.Reason != "" || up.Listen != cfg.Listen || up.QEMUPID == 0 || up.SupervisorPID == 0 {
		t.Errorf("status of a running machine: %+v", up)
	}

	if body, err := get(cfg.Listen, "/some/path"); err != nil || body != "/some/path" {
		t.Errorf("API: %q, %v", body, err)
	}

	var stdout bytes.Buffer
	exit, err := m.Exec(t.Context(), Program{Path: program(t), Args: []string{"7", "x"}}, agent.Stdio{Stdout: &stdout})
	if err != nil || exit.Code != 7 || stdout.String() != "ran 7 x" {
		t.Errorf("exec: %+v, %v, %q", exit, err, stdout.String())
	}
	if left, err := m.Exec(t.Context(), Program{Path: "count-files", Inside: true}, agent.Stdio{}); err != nil || left.Code != 0 {
		t.Errorf("%d copied programs left, %v", left.Code, err)
	}

	if err := m.Start(t.Context(), cfg, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("second start: %v", err)
	}
	if old, err := m.Outdated(cfg); old || err != nil {
		t.Errorf("just started, and outdated: %v, %v", old, err)
	}
	write(t, filepath.Join(cfg.Bin, "emberd"), "a new emberd")
	if old, err := m.Outdated(cfg); !old || err != nil {
		t.Errorf("outdated with a new emberd: %v, %v", old, err)
	}

	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, m, up)
	if err := m.Stop(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("second stop: %v", err)
	}
}

// TestDisksElsewhere calls by its name a machine that was started with another
// data directory.
func TestDisksElsewhere(t *testing.T) {
	m, cfg := newMachine(t, "")
	if err := m.Start(t.Context(), cfg, nil); err != nil {
		t.Fatal(err)
	}
	up := status(t, m)
	other := m
	other.Disks = filepath.Join(t.TempDir(), "machine")
	if s := status(t, other); s.State != Running {
		t.Errorf("it is %+v", s)
	}
	if err := other.Start(t.Context(), cfg, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("started once more: %v", err)
	}
	if err := other.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	nothingLeft(t, m, up)
}

func TestStartFails(t *testing.T) {
	for _, tt := range []struct {
		name, fault string
		change      func(t *testing.T, cfg *Config)
		want        []string // all in the error
	}{
		{"kernel panic", "panic", nil, []string{"kernel panicked", "Kernel panic - not syncing"}},
		{"emberd ends", "nodaemon", nil, []string{"emberd ended with status 3", "pack python: file missing"}},
		{"no setup", "", func(t *testing.T, cfg *Config) { cfg.Data = paths.Data(t.TempDir()) }, []string{"emberctl setup"}},
		{"not built", "", func(t *testing.T, cfg *Config) { cfg.Bin = t.TempDir() }, []string{"make build"}},
		{"no QEMU", "", func(t *testing.T, _ *Config) { t.Setenv("PATH", "/nowhere") }, []string{qemuProgram}},
		{"no supervisor", "", func(_ *testing.T, cfg *Config) { cfg.Supervisor = []string{"/nowhere"} }, []string{"/nowhere"}},
		{"supervisor says nothing", "", func(_ *testing.T, cfg *Config) { cfg.Supervisor = []string{"/bin/true"} }, []string{""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, cfg := newMachine(t, tt.fault)
			if tt.change != nil {
				tt.change(t, &cfg)
			}
			err := m.Start(t.Context(), cfg, nil)
			if err == nil {
				t.Fatal("it started")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error has no %q:\n%v", want, err)
				}
			}
			if _, err := os.Stat(m.Disks); err == nil {
				nothingLeft(t, m, Status{})
			}
		})
	}
}

func TestStartAddressTaken(t *testing.T) {
	m, cfg := newMachine(t, "")
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := m.Start(t.Context(), cfg, nil); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v", err)
	}
}

// TestStartInterrupted interrupts a start while the guest boots.
func TestStartInterrupted(t *testing.T) {
	m, cfg := newMachine(t, "mute")
	ctx, interrupt := context.WithCancelCause(t.Context())
	defer interrupt(nil)
	cause := errors.New("interrupted by the test")
	var had Status
	err := m.Start(ctx, cfg, func(step string) {
		if step == "booting the machine" {
			had = status(t, m)
			interrupt(cause)
		}
	})
	if !errors.Is(err, cause) {
		t.Fatalf("got %v", err)
	}
	if had.State != Starting || had.QEMUPID == 0 {
		t.Errorf("while it booted: %+v", had)
	}
	nothingLeft(t, m, had)
}

func TestMachineDies(t *testing.T) {
	for _, tt := range []struct {
		name string
		pid  func(Status) int
		want string
	}{
		{"QEMU killed", func(s Status) int { return s.QEMUPID }, "signal: killed"},
		{"supervisor killed", func(s Status) int { return s.SupervisorPID }, "supervisor was killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, cfg := newMachine(t, "")
			if err := m.Start(t.Context(), cfg, nil); err != nil {
				t.Fatal(err)
			}
			had := status(t, m)
			ended := make(chan error, 1)
			go func() {
				_, err := m.Exec(t.Context(), Program{Path: program(t), Args: []string{"hang"}}, agent.Stdio{})
				ended <- err
			}()
			time.Sleep(100 * time.Millisecond) // most of the time the program runs by then
			if err := syscall.Kill(tt.pid(had), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("exec in a machine that died: %v", err)
				}
			case <-time.After(patience):
				t.Fatal("exec still waits for a machine that died")
			}
			if s := status(t, m); s.State != Exited || !strings.Contains(s.Reason, tt.want) || s.QEMUPID != 0 {
				t.Errorf("status: %+v", s)
			}
			goneSoon(t, had.QEMUPID)
			if err := m.Start(t.Context(), cfg, nil); err != nil {
				t.Errorf("start after that: %v", err)
			}
			up := status(t, m)
			if err := m.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, m, up)
		})
	}
}

// TestStopOthersProcess has a record that names a process which is not the
// supervisor any more.
func TestStopOthersProcess(t *testing.T) {
	m, _ := newMachine(t, "")
	for _, dir := range []string{m.Disks, m.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := m.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	victim := os.Getpid()
	rec := record{Status: Status{Name: m.Name, State: Running, SupervisorPID: victim}, SupervisorStart: "1"}
	if err := m.writeRecord(rec); err != nil {
		t.Fatal(err)
	}
	if err := m.endSupervisor(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Being here is the result: the signal would have ended this process.
}
