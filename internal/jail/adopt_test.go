package jail

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/process"
)

// standIn is a process that writes its console where a VMM would, and the handle
// that it would have in j.
func standIn(t *testing.T, j *Jailer, id sandbox.VMID) handle {
	t.Helper()
	console, sink, err := consolePipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "echo first words; exec sleep 60")
	cmd.Stdout = sink
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("the process was ended: %v", err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := console.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	_, _ = sink.Close(), console.Close()
	h := handle{Jail: sandbox.Jail{
		PID: cmd.Process.Pid, UID: 5000, Root: filepath.Join(j.cfg.Dir, j.rootDir(string(id))),
	}}
	for !sleeps(h.Jail.PID) {
		time.Sleep(time.Millisecond)
	}
	if h.Process, err = process.Of(h.Jail.PID); err != nil {
		t.Fatal(err)
	}
	if h.Console, err = process.FileAt(consolePath(h.Jail.PID)); err != nil {
		t.Fatal(err)
	}
	return h
}

// sleeps says whether a process has become the one that sleeps.
func sleeps(pid int) bool {
	name, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(consolePath(pid))), "comm"))
	return err == nil && string(name) == "sleep\n"
}

// What is not for certain the VMM of a handle is not adopted, nor touched.
func TestOnlyTheVeryVMMIsAdopted(t *testing.T) {
	const id = sandbox.VMID("vm-0123456789ab")
	for name, tt := range map[string]struct {
		spoil func(*handle)
		want  string
	}{
		"not in its cgroup":     {func(*handle) {}, "cgroup"},
		"began at another time": {func(h *handle) { h.Process.Started++ }, "not that process"},
		"another program":       {func(h *handle) { h.Process.Exe.Ino++ }, "not that process"},
		"another directory":     {func(h *handle) { h.Jail.Root = "/srv/jail/root" }, "root directory"},
		"two numbers":           {func(h *handle) { h.Process.PID = 1 }, "contradicts"},
		"a user of the system":  {func(h *handle) { h.Jail.UID = 0 }, "contradicts"},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJailer(t)
			h := standIn(t, j, id)
			tt.spoil(&h)
			text, err := json.Marshal(h)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := j.Adopt(id, text); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error about its %s", err, tt.want)
			}
		})
	}
	if _, err := newJailer(t).Adopt(id, []byte("{")); err == nil {
		t.Error("what is no handle was taken for one")
	}
}

func TestOnlyTheVMMsConsoleIsRead(t *testing.T) {
	h := standIn(t, newJailer(t), "vm-0123456789ab")
	console, err := openConsole(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := console.Close(); err != nil {
		t.Error(err)
	}
	other := h
	other.Console.Ino++
	if _, err := openConsole(other); err == nil {
		t.Error("another pipe was opened")
	}
	// This process's own descriptor is no pipe that a VMM was given.
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	cmd := exec.Command("sleep", "60")
	cmd.Stdout = file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	h.Process.PID = cmd.Process.Pid
	if h.Console, err = process.FileAt(consolePath(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	if _, err := openConsole(h); err == nil {
		t.Error("a file was opened")
	}
}

func TestLeftIsWhatHasTheNameOfAMicroVM(t *testing.T) {
	j := newJailer(t)
	const both, jailed, grouped = "vm-000000000001", "vm-000000000002", "vm-000000000003"
	for _, dir := range []string{
		j.cgroups.path(both), j.cgroups.path(grouped), j.cgroups.path("backup"), j.cgroups.path("vm-backup"),
		filepath.Join(j.cfg.Dir, j.jailDir(both)), filepath.Join(j.cfg.Dir, j.jailDir(jailed)),
		filepath.Join(j.cfg.Dir, j.jailDir("notes")), filepath.Join(j.cfg.Dir, j.jailDir("vm-00000000000G")),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	left, err := j.look()
	if want := []sandbox.VMID{both, jailed, grouped}; err != nil || !slices.Equal(left, want) {
		t.Errorf("got %v, %v, want %v", left, err, want)
	}
}

// An id that is from a block which this daemon has not locked is not its to hand
// out.
func TestUserOfAnotherBlockIsNotHandedOut(t *testing.T) {
	u, err := openUsers(IDRange{First: 5000, Count: 3}, t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.close() }()
	u.release(900_000)
	for range 3 {
		if id, err := u.lease(); err != nil || id == 900_000 {
			t.Errorf("got %d, %v", id, err)
		}
	}
	if id, err := u.lease(); err == nil {
		t.Errorf("got %d", id)
	}
}
