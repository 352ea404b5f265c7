package real

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/testenv"
)

// says is the ending of the file that lies beside a stub and is what the stub
// says.
const says = ".says"

// hang is what a stub says that says nothing and does not end.
const hang = "hang"

// runStub ends this process if it was started as a stub.
func runStub() {
	words, err := os.ReadFile(os.Args[0] + says)
	if err != nil {
		return
	}
	for string(words) == hang {
		time.Sleep(time.Hour)
	}
	_, _ = os.Stdout.Write(words)
	os.Exit(0)
}

// stub puts this binary, saying words, into the place of an executable.
func stub(t *testing.T, path, words string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(self, path), os.WriteFile(path+says, []byte(words), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// A daemon does not start with a Firecracker that guests may get out of, that it
// does not know, or that is none. It says which, and what to do.
func TestVersionsAreChecked(t *testing.T) {
	testenv.Real(t)
	for _, tt := range []struct {
		name, vmm, jailer string
		want              []string
	}{
		{"vulnerable", "Firecracker v1.14.3\n", "Jailer v1.14.3\n", []string{"1.14.3", "CVE-2026-5747", "use 1.14.4"}},
		{"vulnerable line", "Firecracker v1.15.0\n", "Jailer v1.15.0\n", []string{"1.15.0", "CVE-2026-5747", "use 1.15.1"}},
		{"broken", "Firecracker v1.16.0\n", "Jailer v1.16.0\n", []string{"1.16.0", "vsock", "use 1.16.1"}},
		{"too old", "Firecracker v1.11.2\n", "Jailer v1.11.2\n", []string{"1.11.2", "1.12 to 1.16"}},
		{"not known yet", "Firecracker v1.17.0\n", "Jailer v1.17.0\n", []string{"1.17.0", "1.12 to 1.16"}},
		{"of two releases", "Firecracker v1.12.1\n", "Jailer v1.15.1\n", []string{"1.12.1", "1.15.1", "one release"}},
		{"another program", "QEMU emulator version 7.2.0\n", "Jailer v1.12.1\n", []string{"no version"}},
		{"garbage", strings.Repeat("\xff\x00\x1b[2J", 1<<18), "Jailer v1.12.1\n", []string{"no version"}},
		{"huge numbers", "Firecracker v99999999999999999999.1.1\n", "Jailer v1.12.1\n", []string{"out of range"}},
		{"silent", "", "Jailer v1.12.1\n", []string{"no version"}},
		{"silent jailer", "Firecracker v1.12.1\n", "", []string{"jailer", "no version"}},
		{"hanging", hang, "Jailer v1.12.1\n", []string{"does not say its version"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := takeState(t)
			cfg := daemon.NewConfig()
			cfg.Listen = "127.0.0.1:0"
			cfg.DataDir, cfg.RunDir = linkData(t), paths.Run(t.TempDir())
			cfg.Init, cfg.Log = installedInit(t), slog.New(slog.DiscardHandler)
			stub(t, cfg.DataDir.Firecracker(), tt.vmm)
			stub(t, cfg.DataDir.Jailer(), tt.jailer)

			began := time.Now()
			d, err := daemon.New(t.Context(), cfg)
			if err == nil {
				t.Error("it starts")
				err = d.Close(t.Context())
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			for _, want := range append(tt.want, "emberctl setup") {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%.300v; want it to say %q", err, want)
				}
			}
			if _, err := os.Lstat(filepath.Join(cfg.DataDir.Jails(), "lock")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("jails were made ready: %v", err)
			}
			checkState(t, before)
		})
	}
}
