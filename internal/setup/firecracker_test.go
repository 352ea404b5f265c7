package setup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/source"
)

// buildVMM makes a static executable that says it is version v of name.
func buildVMM(t *testing.T, path, banner string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "main.go")
	write(t, src, "package main\nimport \"fmt\"\nfunc main() { fmt.Println("+`"`+banner+`"`+") }\n", 0o644)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", path, err, out)
	}
}

func TestFirecrackerOfUser(t *testing.T) {
	mine := t.TempDir()
	// The names that the files of an official release have.
	buildVMM(t, filepath.Join(mine, "firecracker-v1.15.1-x86_64"), "Firecracker v1.15.1")
	buildVMM(t, filepath.Join(mine, "jailer-v1.15.1-x86_64"), "Jailer v1.15.1")
	write(t, filepath.Join(mine, "firecracker-v1.15.1-x86_64.debug"), "", 0o644)

	c := Config{Data: paths.Data(t.TempDir()), Firecracker: mine}
	install := func() error {
		_, err := c.create(t.Context(), []part{{"firecracker", c.firecrackerMissing, c.makeFirecracker}}, nil)
		return err
	}
	missing := func() string {
		t.Helper()
		why, err := c.firecrackerMissing()
		if err != nil {
			t.Fatal(err)
		}
		return why
	}
	if got := missing(); got != "not installed" {
		t.Errorf("at first: got %q", got)
	}
	if err := install(); err != nil {
		t.Fatal(err)
	}
	if got := missing(); got != "" {
		t.Errorf("after the setup: got %q", got)
	}
	rec, err := source.Read[vmmRecord](filepath.Dir(c.Data.Firecracker()))
	if err != nil || rec.Version != "1.15.1" || rec.Source != mine {
		t.Errorf("got record %+v, %v", rec, err)
	}
	if read(t, c.Data.Jailer()) != read(t, filepath.Join(mine, "jailer-v1.15.1-x86_64")) {
		t.Error("the jailer is another one")
	}

	if err := os.WriteFile(c.Data.Jailer(), []byte("spoilt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := missing(); got != "not as it was installed" {
		t.Errorf("with a spoilt jailer: got %q", got)
	}
	if err := install(); err != nil {
		t.Fatal(err)
	}

	buildVMM(t, filepath.Join(mine, vmmName), "Firecracker v1.16.0")
	buildVMM(t, filepath.Join(mine, jailerName), "Jailer v1.16.0")
	if got := missing(); got != "another one is wanted" {
		t.Errorf("with another directory: got %q", got)
	}
	if err := install(); err == nil || !strings.Contains(err.Error(), "1.16.0") {
		t.Errorf("1.16.0: got %v", err)
	}
	buildVMM(t, filepath.Join(mine, vmmName), "Firecracker v1.16.1")
	buildVMM(t, filepath.Join(mine, jailerName), "Jailer v1.15.1")
	if err := install(); err == nil || !strings.Contains(err.Error(), "of one release") {
		t.Errorf("two releases: got %v", err)
	}
	c.Firecracker = ""
	if got := missing(); got != "" {
		t.Errorf("what was installed before is spoilt: %q", got)
	}
}

func TestFirecrackerRefused(t *testing.T) {
	if _, _, err := inDir(t.TempDir()); err == nil {
		t.Error("found executables in an empty directory")
	}
	script := filepath.Join(t.TempDir(), "firecracker")
	write(t, script, "#!/bin/sh\necho Firecracker v1.15.1\n", 0o755)
	if err := checkStatic(script); err == nil {
		t.Error("a script passes for a static executable")
	}
	if err := checkStatic("/bin/sh"); err == nil || !strings.Contains(err.Error(), "dynamically linked") {
		t.Errorf("a dynamic executable: got %v", err)
	}
}

func TestWantSum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "hello\n", 0o644)
	const sum = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
	if err := wantSum(path, sum); err != nil {
		t.Error(err)
	}
	if err := wantSum(path, pinnedVMMSum); err == nil {
		t.Error("accepted a file of another content")
	}
}
