package support

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/paths"
)

// pretend has this program be an emberd that runs, or that explains its settings.
const pretend = "EMBERD_PRETEND"

func TestMain(m *testing.M) {
	if os.Getenv(pretend) == "" {
		os.Exit(m.Run())
	}
	if len(os.Args) > 2 && os.Args[1] == "config" && os.Args[2] == "explain" {
		fmt.Println("flags", os.Args[3:], "variable", os.Getenv("EMBERD_MAX_VCPUS"), "key", os.Getenv("EMBERD_API_KEY"))
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is told to end
}

// The settings in a bundle are those of the daemon that runs, however it was told
// them.
func TestSettingsOfARunningDaemon(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "emberd")
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, program)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--max-memory", "4096")
	cmd.Env = append(os.Environ(), pretend+"=1", "EMBERD_MAX_VCPUS=7", "EMBERD_API_KEY=hush", "OTHER=hush")
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close(); _ = cmd.Wait() }()
	run := paths.Run(dir)
	if err := os.WriteFile(run.Lock(), fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Settings(run, "/nonexistent/emberd")(t.Context())
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	for _, want := range []string{fmt.Sprintf("emberd runs (pid %d)", cmd.Process.Pid), "flags [--max-memory 4096] variable 7 key \n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is missing in %q", want, b)
		}
	}
}
