package jail

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/sandbox"
)

// fakeHierarchy is a directory that looks like the root of a cgroup v2 mount.
func fakeHierarchy(t *testing.T, controllers string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{"cgroup.controllers": controllers, "cgroup.subtree_control": ""} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCgroupsNeedTheirControllers(t *testing.T) {
	for controllers, missing := range map[string]string{
		"cpu memory io\n":      "pids",
		"cpuset memory pids\n": "cpu", // cpuset is not cpu
		"cpu hugetlb pids\n":   "memory",
		"":                     "cpu",
	} {
		_, err := openCgroups(fakeHierarchy(t, controllers), "emberd")
		if err == nil || !strings.Contains(err.Error(), "no "+missing+" controller") {
			t.Errorf("with %q: %v, want an error that names %s", controllers, err, missing)
		}
	}
	if _, err := openCgroups(t.TempDir(), "emberd"); err == nil || !strings.Contains(err.Error(), "cgroup v2 is not mounted") {
		t.Errorf("without a hierarchy: %v", err)
	}
}

func TestLimits(t *testing.T) {
	got := limitsFor(sandbox.Size{VCPUs: 2, MemoryMiB: 512})
	want := map[string]string{
		"memory.max":      "603979776", // 512 MiB for the guest, 64 for its VMM
		"memory.swap.max": "0",
		"cpu.max":         "200000 100000",
		"pids.max":        "34",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUsersAreNotSharedAndReusedLate(t *testing.T) {
	u := newUsers(1000, 4)
	lease := func() int {
		t.Helper()
		id, err := u.lease()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first := lease()
	u.release(first)
	got := []int{lease(), lease(), lease()}
	if slices.Contains(got, first) {
		t.Errorf("%d was handed out again while others were unused: %v", first, got)
	}
	if last := lease(); last != first {
		t.Errorf("got %d, want the one that is left, %d", last, first)
	}
	if _, err := u.lease(); err == nil {
		t.Error("a fifth lease of four ids")
	}
	u.release(got[1])
	if again := lease(); again != got[1] {
		t.Errorf("got %d, want %d", again, got[1])
	}
}

func TestJailNamesAreTheJailers(t *testing.T) {
	name := jailID(sandbox.NewID())
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || len(name) > 64 {
		t.Errorf("the jailer does not take the id %q", name)
	}
	if cgroupName("/a") == cgroupName("/b") {
		t.Error("two directories share a cgroup")
	}
}

func TestMakeRootLinksAndSharesNothingElse(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "image")
	if err := os.WriteFile(source, []byte("image"), 0o444); err != nil {
		t.Fatal(err)
	}
	j := &Jailer{cfg: Config{Dir: filepath.Join(dir, "jail"), Firecracker: "/opt/firecracker"}}
	if err := j.makeRoot("sb-1", map[string]string{"rootfs": source}); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "jail", "firecracker", "sb-1", "root")
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 {
		t.Fatalf("the root directory holds %v, %v", entries, err)
	}
	linked, err := os.Stat(filepath.Join(root, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	original, err := os.Stat(source)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(linked, original) {
		t.Error("the image was copied")
	}
	if err := j.makeRoot("sb-1", nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("a root directory was used twice: %v", err)
	}
	if err := j.makeRoot("sb-2", map[string]string{"rootfs": filepath.Join(dir, "absent")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the missing file", err)
	}
}
