package kernel

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCheckConfig(t *testing.T) {
	config := "# a comment\nCONFIG_A=y\nCONFIG_NAME=\"x=y\"\n# CONFIG_OFF is not set\nCONFIG_N=7\n"
	for _, tt := range []struct {
		name, fragment string
		dropped        string // empty: it is followed
	}{
		{"followed", "# why\nCONFIG_A=y\nCONFIG_NAME=\"x=y\"\nCONFIG_N=7\n\n", ""},
		{"off", "# CONFIG_OFF is not set\n# CONFIG_UNKNOWN is not set\n", ""},
		{"dropped", "CONFIG_A=y\nCONFIG_B=y\n", "CONFIG_B=y"},
		{"turned off", "CONFIG_OFF=y\n", "CONFIG_OFF=y"},
		{"another value", "CONFIG_N=8\n", "CONFIG_N=8"},
		{"on in spite", "# CONFIG_A is not set\n", "# CONFIG_A is not set"},
		{"name of a name", "CONFIG_NAM=\"x=y\"\n", "CONFIG_NAM="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := checkConfig([]byte(tt.fragment), []byte(config))
			if (err == nil) != (tt.dropped == "") || err != nil && !strings.Contains(err.Error(), tt.dropped) {
				t.Errorf("got %v, want an error with %q", err, tt.dropped)
			}
		})
	}
}

// fakeSource is a source tree whose Makefile acts as the kernel's: it keeps its
// environment, and drops options that begin with BROKEN.
func fakeSource(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"make", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	src := t.TempDir()
	writeTestFile(t, filepath.Join(src, "Makefile"), []byte(`
allnoconfig:
	grep -v CONFIG_BROKEN $(KCONFIG_ALLCONFIG) > .config
	echo 'CONFIG_CC_VERSION_TEXT="gcc 12"' >> .config
vmlinux:
	mkdir -p include/config
	echo 6.1.1-emberd > include/config/kernel.release
	env > vmlinux
	touch modules.builtin
`))
	then := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(src, "Makefile"), then, then); err != nil {
		t.Fatal(err)
	}
	return src
}

func TestCompile(t *testing.T) {
	t.Setenv("KCFLAGS", "-O0")
	t.Setenv("MAKEFLAGS", "--dry-run")
	src, fragment := fakeSource(t), []byte("CONFIG_A=y\n")
	got, err := Compile(t.Context(), src, fragment)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Build{Release: "6.1.1-emberd", Config: ConfigDigest(fragment), Compiler: "gcc 12"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	env, err := os.ReadFile(filepath.Join(src, "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(env, []byte("KBUILD_BUILD_TIMESTAMP=2024-05-06 07:08:09\n")) {
		t.Errorf("the build has not the source's time:\n%s", env)
	}
	if bytes.Contains(env, []byte("KCFLAGS")) {
		t.Errorf("the caller's environment reached the build:\n%s", env)
	}

	_, err = Compile(t.Context(), src, []byte("CONFIG_A=y\nCONFIG_BROKEN_B=y\n"))
	if err == nil || !strings.Contains(err.Error(), "CONFIG_BROKEN_B=y") {
		t.Errorf("a dropped option: got %v", err)
	}
}

func TestInstallBuilt(t *testing.T) {
	src, data := t.TempDir(), t.TempDir()
	to := Files{Image: filepath.Join(data, "vmlinux"), Modules: filepath.Join(data, "modules")}
	writeTestFile(t, filepath.Join(src, "vmlinux"), fakeELF)
	writeTestFile(t, filepath.Join(src, configFile), []byte("CONFIG_A=y\n"))
	list := "kernel/" + strings.Join(GuestModules(), ".ko\nkernel/") + ".ko\n"
	writeTestFile(t, filepath.Join(src, builtinList), []byte(list))
	if err := InstallBuilt(src, to); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to.Image); err != nil || !bytes.Equal(got, fakeELF) {
		t.Errorf("vmlinux: %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(filepath.Join(data, "config")); err != nil || string(got) != "CONFIG_A=y\n" {
		t.Errorf("config: %q, %v", got, err)
	}
	// Everything is built in, so an initramfs carries no module.
	var image bytes.Buffer
	init := filepath.Join(src, "vmlinux")
	if err := WriteInitramfs(&image, init, to.Modules, GuestModules()); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(image.Bytes(), []byte(".ko")) {
		t.Error("the initramfs names a module")
	}

	writeTestFile(t, filepath.Join(src, builtinList), []byte(strings.ReplaceAll(list, "overlay", "underlay")))
	if err := InstallBuilt(src, to); err == nil || !strings.Contains(err.Error(), "module overlay") {
		t.Errorf("without overlay: got %v", err)
	}
}
