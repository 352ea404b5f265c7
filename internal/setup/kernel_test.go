package setup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/source"
	config "github.com/emberd/emberd/kernel"
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
	if got, want := kernelPackage().newestOf(names), "linux-image-6.1.0-51-cloud-amd64"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	names = append(names, "linux-source-6.1", "linux-source-6.12")
	if got, want := sourcePackage().newestOf(names), "linux-source-6.1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := kernelPackage().newestOf(names[2:]); got != "" {
		t.Errorf("got %q, want none", got)
	}
}

// Where the kernel comes from when the sources before have none.
func TestFetch(t *testing.T) {
	pinnedKernel := kernelPackage().name
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
			deb, err := kernelPackage().fetch(t.Context(), t.TempDir(), nil)
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

// Each place of Debian's kernel is looked at on its own.
func TestKernelMissing(t *testing.T) {
	pin := kernelPackage().version
	for name, tt := range map[string]struct {
		config Config
		dir    func(paths.Data) string
		files  func(paths.Data) kernel.Files
		mods   []string
	}{
		"guest":   {Config{Kernel: KernelDebian}, paths.Data.GuestKernel, guestFiles, kernel.GuestModules()},
		"machine": {Config{Kernel: KernelBuild, Machine: true}, paths.Data.MachineKernel, machineFiles, kernel.MachineModules()},
	} {
		t.Run(name, func(t *testing.T) {
			c := tt.config
			c.Data = paths.Data(t.TempDir())
			want := func(why string) {
				t.Helper()
				if got, err := c.kernelMissing(); got != why || err != nil {
					t.Errorf("got %q, %v, want %q", got, err, why)
				}
			}
			record := func(rec kernel.Record) {
				t.Helper()
				if err := source.Write(tt.dir(c.Data), rec); err != nil {
					t.Fatal(err)
				}
			}
			want("not installed")
			put(t, tt.files(c.Data))
			// A stand-in for a pinned version that could not be had stays.
			parts := kernelParts(tt.mods)
			record(kernel.Record{Version: "6.1.170-1", Pin: pin, Parts: parts})
			want("")
			record(kernel.Record{Version: "6.1.170-1", Pin: "6.1.170-1", Parts: parts})
			want("another version is wanted")
			record(kernel.Record{Version: pin, Pin: pin, Parts: "fewer"})
			want("other modules are wanted")
			record(kernel.Record{Version: pin, Pin: pin, Parts: parts, Build: &kernel.Build{}})
			want("a built one is installed")
			record(kernel.Record{Version: pin, Pin: pin, Parts: parts})
			if err := os.Remove(tt.files(c.Data).Image); err != nil {
				t.Fatal(err)
			}
			want("incomplete")
		})
	}
}

func TestBuiltKernelMissing(t *testing.T) {
	c := Config{Kernel: KernelBuild, Data: paths.Data(t.TempDir())}
	good := kernel.Record{
		Version: "6.1", Pin: sourcePackage().version, Parts: kernelParts(kernel.GuestModules()),
		Build: &kernel.Build{Config: kernel.ConfigDigest(config.GuestConfig)},
	}
	want := func(why string, change func(*kernel.Record)) {
		t.Helper()
		rec, build := good, *good.Build
		rec.Build = &build
		if change != nil {
			change(&rec)
		}
		if err := source.Write(c.Data.GuestKernel(), rec); err != nil {
			t.Fatal(err)
		}
		if got, err := c.builtKernelMissing(); got != why || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, why)
		}
	}
	if got, err := c.builtKernelMissing(); got != "not built" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	put(t, guestFiles(c.Data))
	want("", nil)
	want("not built", func(r *kernel.Record) { r.Build = nil })
	want("another version is wanted", func(r *kernel.Record) { r.Pin = "6.0" })
	want("another configuration is wanted", func(r *kernel.Record) { r.Build.Config = "other" })
	want("other modules are wanted", func(r *kernel.Record) { r.Parts = "fewer" })
	if err := os.Remove(c.Data.Vmlinux()); err != nil {
		t.Fatal(err)
	}
	want("incomplete", nil)
	// Debian's kernel is wanted for the machine only, so none is.
	if got, err := c.kernelMissing(); got != "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func put(t *testing.T, files kernel.Files) {
	t.Helper()
	write(t, files.Image, "", 0o644)
	write(t, filepath.Join(files.Modules, "m"), "", 0o644)
}

// What is installed stays until another kernel is asked for.
func TestResolve(t *testing.T) {
	data := paths.Data(t.TempDir())
	want := func(k, want Kernel) {
		t.Helper()
		if got, err := k.resolve(data); got != want || err != nil {
			t.Errorf("%q: got %q, %v, want %q", k, got, err, want)
		}
	}
	want("", KernelDebian)
	write(t, data.Vmlinux(), "", 0o644)
	if err := source.Write(data.GuestKernel(), kernel.Record{Version: "6.1", Build: &kernel.Build{}}); err != nil {
		t.Fatal(err)
	}
	want("", KernelBuild)
	want(KernelDebian, KernelDebian)
	want(KernelBuild, KernelBuild)
	if _, err := Kernel("mine").resolve(data); err == nil || !strings.Contains(err.Error(), "want debian or build") {
		t.Errorf("got %v", err)
	}
}

func TestInstallations(t *testing.T) {
	count := func(c Config) int { return len(c.installations()) }
	if count(Config{Kernel: KernelBuild}) != 0 || count(Config{Kernel: KernelBuild, Machine: true}) != 1 ||
		count(Config{Kernel: KernelDebian}) != 1 || count(Config{Kernel: KernelDebian, Machine: true}) != 2 {
		t.Error("Debian's kernel is for the machine, and for sandboxes that get no built one")
	}
}
