package setup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/paths"
)

func TestNewest(t *testing.T) {
	names := []string{
		"linux-image-6.1.0-9-cloud-amd64",
		"linux-image-6.1.0-51-cloud-amd64",
		"linux-image-6.1.0-56-amd64",
		"linux-image-6.1.0-57-cloud-amd64-dbg",
		"linux-image-6.1.0-58-cloud-amd64-unsigned",
		"linux-image-6.12.1-99-cloud-amd64",
	}
	if got, want := newest(names), "linux-image-6.1.0-51-cloud-amd64"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := newest(names[2:]); got != "" {
		t.Errorf("got %q, want none", got)
	}
}

// Where the kernel comes from when the sources before have none.
func TestFetchKernel(t *testing.T) {
	const (
		older   = "linux-image-6.1.0-51-cloud-amd64"
		aptGet  = `echo "apt-get $1${3:+ $3}" >> "$LOG"; `
		aptNone = aptGet + `[ "$1" = update ]`
		debDir  = "/var/cache/apt/archives"
	)
	names := `echo "` + older + `"; echo linux-image-6.1.0-50-cloud-amd64`
	tests := map[string]struct {
		scripts map[string]string
		want    string   // the package's file, "" for none
		log     []string // what was tried
	}{
		"pinned": {
			map[string]string{"apt-get": aptGet + `touch "` + pinnedKernel + `_6.1.192-2_amd64.deb"`},
			pinnedKernel, []string{"apt-get download " + pinnedKernel + "=6.1.192-2"},
		},
		"pinned after an update": {
			map[string]string{"apt-get": aptGet + `
[ "$1" = update ] && touch "$DIR/lists" && exit
[ -e "$DIR/lists" ] && touch "` + pinnedKernel + `_6.1.192-2_amd64.deb"`},
			pinnedKernel, []string{
				"apt-get download " + pinnedKernel + "=6.1.192-2",
				"apt-get update -o",
				"apt-get download " + pinnedKernel + "=6.1.192-2",
			},
		},
		"newest": {
			map[string]string{
				"apt-get":   aptGet + `case "$1${3-}" in update*) ;; download*=*) exit 100;; *) touch "$3_6.1.170-1_amd64.deb";; esac`,
				"apt-cache": names,
			},
			older, []string{
				"apt-get download " + pinnedKernel + "=6.1.192-2",
				"apt-get update -o",
				"apt-get download " + pinnedKernel + "=6.1.192-2",
				"apt-get download " + older,
			},
		},
		"not Debian 12": {
			map[string]string{
				"apt-get":    aptNone,
				"apt-cache":  "",
				"apt-config": "",
				"mmdebstrap": `echo mmdebstrap >> "$LOG"; for t; do :; done; mkdir -p "$t` + debDir + `"
touch "$t` + debDir + `/` + older + `_1_amd64.deb" "$t` + debDir + `/linux-image-cloud-amd64_1_amd64.deb"`,
			},
			older, []string{
				"apt-get download " + pinnedKernel + "=6.1.192-2",
				"apt-get update -o",
				"apt-get download " + pinnedKernel + "=6.1.192-2",
				"mmdebstrap",
			},
		},
		"nowhere": {
			map[string]string{"apt-get": aptNone, "apt-cache": "", "apt-config": "", "mmdebstrap": "echo mmdebstrap >> $LOG; exit 1"},
			"", []string{
				"apt-get download " + pinnedKernel + "=6.1.192-2",
				"apt-get update -o",
				"apt-get download " + pinnedKernel + "=6.1.192-2",
				"mmdebstrap",
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fakePath(t, tt.scripts)
			deb, err := fetchKernel(t.Context(), t.TempDir(), nil)
			if (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v", deb, err)
			}
			if got, _, _ := strings.Cut(filepath.Base(deb), "_"); tt.want != "" && got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			log := strings.Split(strings.TrimSpace(read(t, os.Getenv("LOG"))), "\n")
			if !slices.Equal(log, tt.log) {
				t.Errorf("tried\n%q\nwant\n%q", log, tt.log)
			}
		})
	}
}

func TestKernelMissing(t *testing.T) {
	c := Config{Data: paths.Data(t.TempDir())}
	dir := filepath.Dir(c.Data.Vmlinux())
	missing := func() string {
		t.Helper()
		why, err := c.kernelMissing()
		if err != nil {
			t.Fatal(err)
		}
		return why
	}
	if got := missing(); got != "not installed" {
		t.Errorf("at first: got %q", got)
	}
	for _, path := range []string{c.Data.Vmlinux(), c.Data.Vmlinuz(), filepath.Join(c.Data.Modules(), "m")} {
		write(t, path, "", 0o644)
	}
	record := func(rec kernelRecord) {
		t.Helper()
		if err := writeRecord(dir, rec); err != nil {
			t.Fatal(err)
		}
	}
	// A stand-in for a pinned version that could not be had stays.
	record(kernelRecord{Version: "6.1.170-1", Pin: pinnedKernelVersion, Parts: kernelParts()})
	if got := missing(); got != "" {
		t.Errorf("installed: got %q", got)
	}
	record(kernelRecord{Version: "6.1.170-1", Pin: "6.1.170-1", Parts: kernelParts()})
	if got := missing(); got != "another version is wanted" {
		t.Errorf("after an upgrade: got %q", got)
	}
	record(kernelRecord{Version: pinnedKernelVersion, Pin: pinnedKernelVersion, Parts: "fewer"})
	if got := missing(); got != "other modules are wanted" {
		t.Errorf("with other modules: got %q", got)
	}
	record(kernelRecord{Version: pinnedKernelVersion, Pin: pinnedKernelVersion, Parts: kernelParts()})
	if err := os.Remove(c.Data.Vmlinux()); err != nil {
		t.Fatal(err)
	}
	if got := missing(); got != "incomplete" {
		t.Errorf("without vmlinux: got %q", got)
	}
}
