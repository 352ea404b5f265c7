package pack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/lockfile"
)

// fakeTools puts an mmdebstrap that unpacks a little tree, a mksquashfs that
// writes something with squashfs' magic and the size of the tree's listing, and
// an apt-config first on PATH. A tool whose name is in broken runs that instead.
func fakeTools(t *testing.T, broken map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range map[string]string{
		"apt-config": `echo 'Acquire::http::Proxy http://proxy:1'; echo 'Acquire::Languages none'`,
		"mmdebstrap": `
case "$1" in --version) echo "mmdebstrap fake"; exit;; esac
for tree; do :; done
printf '%s\n' "$@" > "$FAKE_ARGS"
mkdir -p "$tree/usr/bin" "$tree/usr/share/doc/x" "$tree/var/cache/apt/archives"
echo old > "$tree/usr/bin/tool"
ln -s /etc/outside "$tree/usr/link"
touch "$tree/var/cache/apt/archives/b_1%3a2-3_amd64.deb" "$tree/var/cache/apt/archives/a_1.0_all.deb"`,
		"mksquashfs": `
case "$1" in -version) echo "mksquashfs fake"; exit;; esac
cd "$1" && find . | sort > "$FAKE_LIST"
{ printf hsqs; head -c 4092 /dev/zero; } > "$2"`,
	} {
		if b, ok := broken[name]; ok {
			script = b
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh -eu\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("FAKE_ARGS", filepath.Join(dir, "args"))
	t.Setenv("FAKE_LIST", filepath.Join(dir, "list"))
}

func lines(t *testing.T, env string) []string {
	t.Helper()
	raw, err := os.ReadFile(os.Getenv(env))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

func testDefinition() Definition {
	return Definition{
		Name: "x", Interpreter: "sh", Suite: "bookworm", SizeLimitMB: 1,
		Packages:    []string{"a", "b"},
		Links:       map[string]string{"usr/bin/awk": "mawk", "usr/bin/tool": "other"},
		Files:       map[string]string{"etc/hosts": "\nlocalhost\n"},
		Remove:      []Removal{{"test", []string{"usr/share/doc", "var/*", "usr/link/*", "none/*"}}},
		Directories: []Directory{{Path: "tmp", Mode: 0o1777}, {Path: "proc"}},
		digest:      "d1",
	}
}

func TestBuild(t *testing.T) {
	fakeTools(t, nil)
	data := paths.Data(t.TempDir())
	def := testDefinition()
	m, err := buildInto(t.Context(), def, data, nil)
	if err != nil {
		t.Fatal(err)
	}

	want := []Package{{"a", "1.0"}, {"b", "1:2-3"}}
	if !slices.Equal(m.Contents, want) {
		t.Errorf("got contents %v, want %v", m.Contents, want)
	}
	if status, got, err := Inspect(data, def); status != Ready || err != nil || got.Digest != m.Digest {
		t.Errorf("after the build: %s, %v", status, err)
	}
	got := strings.Join(lines(t, "FAKE_LIST"), " ")
	if want := ". ./etc ./etc/hosts ./proc ./tmp ./usr ./usr/bin ./usr/bin/awk ./usr/bin/tool ./usr/link ./usr/share ./var"; got != want {
		t.Errorf("got the tree\n%s\nwant\n%s", got, want)
	}
	args := lines(t, "FAKE_ARGS")
	for _, want := range []string{"--include=a,b", `--aptopt=Acquire::http::Proxy "http://proxy:1"`, "bookworm"} {
		if !slices.Contains(args, want) {
			t.Errorf("mmdebstrap's arguments %q lack %q", args, want)
		}
	}
	wantOnly(t, data, ".lock", "x")

	def.digest = "d2"
	if status, _, _ := Inspect(data, def); status != OutOfDate {
		t.Errorf("with another definition: got %s", status)
	}
	if _, err := buildInto(t.Context(), def, data, nil); err != nil {
		t.Fatalf("build over an older image: %v", err)
	}
	if status, _, _ := Inspect(data, def); status != Ready {
		t.Errorf("after the second build: got %s", status)
	}
	wantOnly(t, data, ".lock", "x")
}

// wantOnly checks that a build left nothing but names in the pack directory.
func wantOnly(t *testing.T, data paths.Data, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(data.Packs())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		t.Errorf("the pack directory holds %q, want %q", got, names)
	}
}

func TestBuildFails(t *testing.T) {
	tests := map[string]struct {
		broken map[string]string
		change func(*Definition)
		want   string
	}{
		"mmdebstrap": {
			broken: map[string]string{"mmdebstrap": `[ "$1" = --version ] || { echo no mirror >&2; exit 1; }`},
			want:   "no mirror",
		},
		"no packages": {
			broken: map[string]string{"mmdebstrap": `[ "$1" = --version ] && exit; for t; do :; done; mkdir -p "$t"`},
			want:   "left no packages",
		},
		"mksquashfs": {broken: map[string]string{"mksquashfs": `[ "$1" = -version ]`}, want: "mksquashfs: exit status 1"},
		"size limit": {
			broken: map[string]string{"mksquashfs": `[ "$1" = -version ] || head -c 1000001 /dev/zero > "$2"`},
			want:   "1 more than its limit of 1 MB",
		},
		"file below a link out of the image": {
			change: func(d *Definition) { d.Files["usr/link/x"] = "" },
			want:   "write usr/link/x",
		},
		"check": {
			change: func(d *Definition) { d.Checks = []Command{{[]string{"no-such-check"}}} },
			want:   "run no-such-check in the image",
		},
		"command": {
			change: func(d *Definition) { d.Commands = []Command{{[]string{"no-such-program"}}} },
			want:   "run no-such-program in the image",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fakeTools(t, tt.broken)
			data := paths.Data(t.TempDir())
			put(t, data, "x")
			def := testDefinition()
			if tt.change != nil {
				tt.change(&def)
			}
			_, err := buildInto(t.Context(), def, data, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			wantOnly(t, data, ".lock", "x")
			if _, err := Load(data); err != nil {
				t.Errorf("the image that was there: %v", err)
			}
		})
	}
}

func TestBuildInterrupted(t *testing.T) {
	fakeTools(t, map[string]string{"mmdebstrap": `
[ "$1" = --version ] && exit
for tree; do :; done
mkdir -p "$tree"
touch "$FAKE_ARGS"
sleep 60 & wait`})
	data := paths.Data(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	var began time.Time
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(os.Getenv("FAKE_ARGS")); err == nil {
				began = time.Now()
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err := buildInto(ctx, testDefinition(), data, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Build returned %v after it was cancelled", took)
	}
	wantOnly(t, data, ".lock")
}

func TestBuildClearsUpAfterAKilledOne(t *testing.T) {
	fakeTools(t, nil)
	data := paths.Data(t.TempDir())
	if err := os.MkdirAll(filepath.Join(data.Packs(), partialPrefix+"y-1", "tree", "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := buildInto(t.Context(), testDefinition(), data, nil); err != nil {
		t.Fatal(err)
	}
	wantOnly(t, data, ".lock", "x")
}

func TestBuildIsAlone(t *testing.T) {
	fakeTools(t, nil)
	data := paths.Data(t.TempDir())
	release, err := lockfile.Take(filepath.Join(data.Packs(), ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := buildInto(t.Context(), testDefinition(), data, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
}
