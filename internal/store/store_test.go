package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
	"github.com/emberd/emberd/internal/x/lockfile"
)

func open(t *testing.T, run paths.Run) *Store {
	t.Helper()
	s, err := Open(run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestRecordsSurviveTheDaemon(t *testing.T) {
	run := paths.Run(t.TempDir())
	s := open(t, run)
	want := sandbox.Sandbox{
		ID: sandbox.NewID(), Pack: "python", Limits: sandbox.Limits{Size: sandbox.DefaultSize, PIDs: 7, Lifetime: time.Minute},
		State: sandbox.Running, BootPath: sandbox.ColdBoot, CreatedAt: time.Now().UTC().Round(0),
	}
	gone := sandbox.Sandbox{ID: sandbox.NewID(), State: sandbox.Creating}
	for _, sb := range []sandbox.Sandbox{{ID: want.ID, State: sandbox.Creating}, gone, want} {
		if err := s.Put(sb); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.Delete(gone.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	got, err := open(t, run).Load()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, []sandbox.Sandbox{want}) {
		t.Errorf("got %+v, want only %+v", got, want)
	}
}

// A daemon that is killed while it writes leaves the record as it was.
func TestHalfWrittenRecord(t *testing.T) {
	run := paths.Run(t.TempDir())
	s := open(t, run)
	want := sandbox.Sandbox{ID: sandbox.NewID(), State: sandbox.Running}
	if err := s.Put(want); err != nil {
		t.Fatal(err)
	}
	partial := filepath.Join(run.Sandboxes(), string(want.ID)+".json.partial")
	if err := os.WriteFile(partial, []byte(`{"version":2,"sand`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || !reflect.DeepEqual(got, []sandbox.Sandbox{want}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if entries, err := os.ReadDir(run.Sandboxes()); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// A record that cannot be written leaves the older one, and nothing else.
func TestRecordThatCannotBeWritten(t *testing.T) {
	run := paths.Run(t.TempDir())
	s := open(t, run)
	id := sandbox.NewID()
	if err := os.Mkdir(filepath.Join(run.Sandboxes(), string(id)+".json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(sandbox.Sandbox{ID: id}); err == nil {
		t.Error("a record took the place of a directory")
	}
	if entries, err := os.ReadDir(run.Sandboxes()); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestSecondDaemonIsTurnedAway(t *testing.T) {
	run := paths.Run(t.TempDir())
	open(t, run)
	_, err := Open(run)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("got %v, want an error naming pid %d", err, os.Getpid())
	}
}

// A process that a daemon was just starting when it was killed has the daemon's lock
// until it executes something else. The next daemon waits for that, and only then.
func TestLockOfADeadDaemon(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		pid   int
		opens bool
	}{
		{"dead", dead.Process.Pid, true},
		{"alive", os.Getppid(), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run := paths.Run(t.TempDir())
			unlock, err := lockfile.Take(run.Lock())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(run.Lock(), fmt.Appendln(nil, tt.pid), 0o600); err != nil {
				t.Fatal(err)
			}
			released := make(chan error, 1)
			time.AfterFunc(300*time.Millisecond, func() { released <- unlock() })
			s, err := Open(run)
			if opened := err == nil; opened != tt.opens {
				t.Errorf("opened %v: %v", opened, err)
			}
			if err == nil {
				_ = s.Close()
			}
			if err := <-released; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDamagedRecordIsSetAside(t *testing.T) {
	id := sandbox.NewID()
	for name, content := range map[string]string{
		"not json":        "{",
		"empty":           "",
		"another version": `{"version":1,"sandbox":{"id":"` + string(id) + `"}}`,
		"another id":      `{"version":2,"sandbox":{"id":"sb_000000000000"}}`,
		"a path as id":    `{"version":2,"sandbox":{"id":"../../etc/passwd"}}`,
		"another sum":     `{"version":2,"sum":"00000000","sandbox":{"id":"` + string(id) + `"}}`,
		"two of them":     `{"version":2,"sandbox":{"id":"` + string(id) + `"}} {}`,
	} {
		t.Run(name, func(t *testing.T) {
			run := paths.Run(t.TempDir())
			s := open(t, run)
			whole := sandbox.Sandbox{ID: sandbox.NewID(), State: sandbox.Running}
			if err := s.Put(whole); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(run.Sandboxes(), string(id)+".json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := s.Load()
			if err == nil || !strings.Contains(err.Error(), string(id)) {
				t.Errorf("error %v does not name the record", err)
			}
			if len(got) != 1 || got[0].ID != whole.ID {
				t.Errorf("got %v, want the whole record only", got)
			}
			if kept, _ := os.ReadFile(path + ".corrupt"); string(kept) != content {
				t.Errorf("quarantined record holds %q, want %q", kept, content)
			}
			if again, err := s.Load(); err != nil || len(again) != 1 {
				t.Errorf("second load: %v, %v", again, err)
			}
		})
	}
}

// A field of a record that JSON cannot carry would be lost over a restart
// without a word.
func TestEveryFieldOfARecordIsSaved(t *testing.T) {
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() {
			return
		}
		for field := range typ.Fields() {
			if typ == reflect.TypeFor[VM]() && field.Name == "Spare" {
				continue // is in the record's name
			}
			tag := field.Tag.Get("json")
			if !field.IsExported() || tag == "" || tag == "-" {
				t.Errorf("%s.%s is not saved", typ, field.Name)
			}
			if slices.Contains([]reflect.Kind{reflect.Chan, reflect.Func, reflect.Interface}, field.Type.Kind()) {
				t.Errorf("%s.%s cannot be saved", typ, field.Name)
			}
			walk(field.Type)
		}
	}
	walk(reflect.TypeFor[sandbox.Sandbox]())
	walk(reflect.TypeFor[VM]())
}

func TestRecordsOfMicroVMs(t *testing.T) {
	run := paths.Run(t.TempDir())
	s := open(t, run)
	want := VM{
		ID: sandbox.NewVMID(), Pack: "python", Rootfs: "digest", Emberd: "v1", Limits: sandbox.Limits{PIDs: 7},
		BootPath: sandbox.Restored, Secret: []byte{0, 1, 2}, Handle: []byte(`{"pid":7}`),
	}
	gone := VM{ID: sandbox.NewVMID()}
	for _, vm := range []VM{gone, want} {
		if err := s.PutVM(vm); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.DeleteVM(gone.ID); err != nil {
			t.Fatal(err)
		}
	}
	// Of one that is damaged, and of one that is a sandbox's, only the name is known.
	var ids []string
	for text, end := range map[string]string{"{": ".json", `{"version":2,"sandbox":{"id":"sb_a1b2c3d4e5f6"}}`: ".json", "}": ".spare"} {
		id := string(sandbox.NewVMID())
		ids = append(ids, id)
		if err := os.WriteFile(filepath.Join(run.VMs(), id+end), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(ids)
	got, err := s.LoadVMs()
	if err == nil || !reflect.DeepEqual(got, []VM{want}) {
		t.Errorf("got %+v, %v, want %+v and an error", got, err, want)
	}
	for range 2 { // nothing is forgotten by the next daemon
		sandboxes, vms, err := s.SetAside()
		slices.Sort(vms)
		if err != nil || len(sandboxes) != 0 || !slices.Equal(vms, ids) {
			t.Errorf("set aside: %v, %v, %v", sandboxes, vms, err)
		}
		if _, err := s.LoadVMs(); err != nil {
			t.Error(err)
		}
	}
}

// Whether a sandbox has had a microVM is known to the next daemon, and a claim that
// fails changes nothing.
func TestClaimVM(t *testing.T) {
	s := open(t, paths.Run(t.TempDir()))
	s.Faults = &fault.Set{}
	holds := func(want ...VM) {
		t.Helper()
		if got, err := s.LoadVMs(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	vm := VM{ID: sandbox.NewVMID(), Pack: "python", Spare: true, Secret: []byte{1}, Handle: []byte("{}")}
	if err := s.PutVM(vm); err != nil {
		t.Fatal(err)
	}
	holds(vm)
	s.Faults.Fail(FaultRename)
	if err := s.ClaimVM(vm.ID); err == nil {
		t.Error("a broken claim is no error")
	}
	holds(vm)
	s.Faults.Do(FaultRename, func() error { return nil })
	if err := s.ClaimVM(vm.ID); err != nil {
		t.Error(err)
	}
	vm.Spare = false
	holds(vm)
	if err := s.ClaimVM(vm.ID); err == nil {
		t.Error("one that is somebody's is claimed again")
	}
	spare := VM{ID: sandbox.NewVMID(), Spare: true, Secret: []byte{1}, Handle: []byte("{}")}
	if err := errors.Join(s.PutVM(spare), s.DeleteVM(vm.ID), s.DeleteVM(spare.ID)); err != nil {
		t.Error(err)
	}
	holds()
}

// A record that is put aside is gone from the others at once, and is there until it
// is forgotten.
func TestRetire(t *testing.T) {
	run := paths.Run(t.TempDir())
	s := open(t, run)
	sb := sandbox.Sandbox{ID: sandbox.NewID(), State: sandbox.Deleting, Once: sandbox.NewOnce("somebody", "key", "create", []byte("{}"))}
	if err := s.Put(sb); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to be put aside
		if err := s.Retire(sb.ID); err != nil {
			t.Fatal(err)
		}
		there, err := s.Load()
		retired, err2 := s.LoadRetired()
		if len(there) != 0 || !reflect.DeepEqual(retired, []sandbox.Sandbox{sb}) || err != nil || err2 != nil {
			t.Errorf("%v and %+v, %v, %v", there, retired, err, err2)
		}
	}
	for range 2 {
		if err := s.Forget(sb.ID); err != nil {
			t.Error(err)
		}
	}
	if retired, err := s.LoadRetired(); len(retired) > 0 || err != nil {
		t.Errorf("%v, %v", retired, err)
	}
}

// flip changes n bytes of the files at paths, chosen by random.
func flip(t *testing.T, random *rand.Rand, n int, paths []string) {
	t.Helper()
	damaged := make(map[string][]byte)
	for range n {
		path := paths[random.IntN(len(paths))]
		b, err := damaged[path], error(nil)
		if b == nil {
			b, err = os.ReadFile(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		b[random.IntN(len(b))] ^= byte(1 + random.IntN(255))
		damaged[path] = b
	}
	for path, b := range damaged {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever bytes of a record change, it is read as it was written or set aside:
// no sandbox comes to have another one's microVM, or another state.
func TestFlippedBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		run := paths.Run(t.TempDir())
		s := open(t, run)
		sandboxes, vms := map[sandbox.ID]sandbox.Sandbox{}, map[sandbox.VMID]VM{}
		var files []string
		for i := range 8 {
			vm := VM{ID: sandbox.NewVMID(), Pack: "python", Rootfs: "digest", Spare: i%2 == 0, Secret: []byte{1, 2, 3}, Handle: []byte(`{"pid":7}`)}
			end := suffix
			if vm.Spare {
				end = spare
			}
			sb := sandbox.Sandbox{ID: sandbox.NewID(), VM: vm.ID, Pack: "python", State: sandbox.Running, CreatedAt: time.Now().UTC().Round(0)}
			if err := errors.Join(s.Put(sb), s.PutVM(vm)); err != nil {
				t.Fatal(err)
			}
			sandboxes[sb.ID], vms[vm.ID] = sb, vm
			files = append(files, filepath.Join(run.Sandboxes(), string(sb.ID)+suffix), filepath.Join(run.VMs(), string(vm.ID)+end))
		}
		flip(t, random, []int{1, 4, 1000}[random.IntN(3)], files)
		if random.IntN(4) == 0 {
			if err := os.Truncate(files[random.IntN(len(files))], random.Int64N(100)); err != nil {
				t.Fatal(err)
			}
		}
		gotSandboxes, _ := s.Load()
		gotVMs, _ := s.LoadVMs()
		for _, sb := range gotSandboxes {
			if !reflect.DeepEqual(sb, sandboxes[sb.ID]) {
				t.Errorf("%+v became %+v", sandboxes[sb.ID], sb)
			}
		}
		for _, vm := range gotVMs {
			if !reflect.DeepEqual(vm, vms[vm.ID]) {
				t.Errorf("%+v became %+v", vms[vm.ID], vm)
			}
		}
		aside, asideVMs, err := s.SetAside()
		if err != nil || len(gotSandboxes)+len(aside) != len(sandboxes) || len(gotVMs)+len(asideVMs) != len(vms) {
			t.Errorf("%d and %d of %d sandboxes, %d and %d of %d microVMs, %v",
				len(gotSandboxes), len(aside), len(sandboxes), len(gotVMs), len(asideVMs), len(vms), err)
		}
	}
}
