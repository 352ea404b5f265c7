package jail

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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

func TestDiskOfMemoryIsNone(t *testing.T) {
	if disk, err := diskOf("/proc"); err == nil {
		t.Errorf("/proc is said to be on disk %s", disk)
	}
}
