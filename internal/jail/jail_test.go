package jail

import (
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/sandbox"
)

var update = flag.Bool("update", false, "write the golden files")

// newJailer is a jailer in a directory of its own, with no cgroups behind it.
func newJailer(t *testing.T) *Jailer {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "jail")
	root, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return &Jailer{
		cfg:     Config{Dir: dir, Firecracker: "/opt/firecracker", Jailer: "/opt/jailer", Log: slog.New(slog.DiscardHandler)},
		dir:     root,
		cgroups: cgroupTree{root: filepath.Join(dir, "no-cgroups"), name: "emberd-test"},
	}
}

// image makes a file that VMs may share.
func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte("image"), 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// shared is a plan's file that is a link of source.
func shared(name, source string) []sandbox.JailFile {
	return []sandbox.JailFile{{Path: "/" + name, Source: source}}
}

func TestPlanIsTheGoldenOne(t *testing.T) {
	j := newJailer(t)
	j.disk, j.userfault = "254:0", true
	source := image(t)
	spec := Spec{ID: "vm-0123456789ab", Args: []string{"--api-sock", "/api.sock"}}
	plan, err := j.equipped(j.plan(spec, 1_701_642_240), spec, sandbox.Size{VCPUs: 2, MemoryMiB: 512}, map[string]string{"rootfs": source})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range plan.Files {
		if f.Source != "" { // it is root's, where the daemon is
			plan.Files[i].UID, plan.Files[i].GID = 0, 0
		}
	}
	b, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.NewReplacer(j.cfg.Dir, "/var/lib/emberd/jail", source, "/var/lib/emberd/packs/shell/rootfs").Replace(string(b)) + "\n"
	golden := filepath.Join("testdata", "plan.json")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the jail has changed; if that is meant, run the test with -update. It is now\n%s", got)
	}
}

func TestPlanSaysWhatIsMissing(t *testing.T) {
	j := newJailer(t)
	j.diskErr = errors.New("no disk")
	plan := j.plan(Spec{ID: "vm-0123456789ab"}, 5000)
	if _, ok := plan.CgroupLimits["io.max"]; ok || len(plan.Missing) != 1 || plan.Missing[0] != "io.max: no disk" {
		t.Errorf("limits %v, missing %q", plan.CgroupLimits, plan.Missing)
	}
	if _, err := j.equipped(plan, Spec{}, sandbox.DefaultSize, map[string]string{"rootfs": "/absent"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the missing file", err)
	}
}

func TestLimits(t *testing.T) {
	got := limitsFor(sandbox.Size{VCPUs: 2, MemoryMiB: 512}, 0, "")
	want := map[string]string{
		"memory.max":       "603979776", // 512 MiB for the guest, 64 for its VMM
		"memory.swap.max":  "0",
		"memory.oom.group": "1",
		"cpu.max":          "200000 100000",
		"pids.max":         "34",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestJailNamesAreTheJailers(t *testing.T) {
	name := string(sandbox.NewVMID())
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || len(name) > 64 {
		t.Errorf("the jailer does not take the id %q", name)
	}
	if cgroupName("/a") == cgroupName("/b") {
		t.Error("two directories share a cgroup")
	}
}

func TestUserIDComesBackWhenNothingIsLeft(t *testing.T) {
	j := newJailer(t)
	j.users = testUsers(t, IDRange{First: 5000, Count: 1})
	lease := func() error {
		_, err := j.users.lease()
		return err
	}
	if err := lease(); err != nil {
		t.Fatal(err)
	}
	cgroup := j.cgroups.path("vm-1")
	if err := errors.Join(os.MkdirAll(cgroup, 0o700), j.makeRoot("vm-1")); err != nil {
		t.Fatal(err)
	}
	if err := j.giveBack(5000, "vm-1"); err == nil || lease() == nil {
		t.Errorf("the id was given back while cgroup and root directory are there (%v)", err)
	}
	if err := os.Remove(cgroup); err != nil {
		t.Fatal(err)
	}
	if err := j.giveBack(5000, "vm-1"); err == nil || lease() == nil {
		t.Errorf("the id was given back while the root directory is there (%v)", err)
	}
	if err := j.removeRoot("vm-1"); err != nil {
		t.Fatal(err)
	}
	if err := j.giveBack(5000, "vm-1"); err != nil {
		t.Error(err)
	}
	if err := lease(); err != nil {
		t.Error(err)
	}
}
