package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/emberd/emberd/internal/x/command"
)

// Build is how a kernel was built. The same source, configuration and compiler
// give the same bytes.
type Build struct {
	// Release is the kernel's name for itself, as uname shows it.
	Release string `json:"release"`
	// Config identifies the fragment that was asked for, see [ConfigDigest].
	Config string `json:"config"`
	// Compiler is the compiler's name and version.
	Compiler string `json:"compiler"`
}

// ConfigDigest identifies a configuration fragment.
func ConfigDigest(fragment []byte) string {
	sum := sha256.Sum256(fragment)
	return hex.EncodeToString(sum[:])
}

// The files of a source tree that a build makes.
const (
	configFile   = ".config"
	fragmentFile = "emberd.config"
)

// Compile builds the kernel of the source tree src. Of the options that have a
// prompt, exactly those are on that the fragment turns on or that Kconfig
// derives from them; a fragment that Kconfig does not follow to the letter is an
// error. Use [InstallBuilt] afterwards.
func Compile(ctx context.Context, src string, fragment []byte) (Build, error) {
	if err := os.WriteFile(filepath.Join(src, fragmentFile), fragment, 0o600); err != nil {
		return Build{}, fmt.Errorf("build kernel: %w", err)
	}
	if err := runMake(ctx, src, "KCONFIG_ALLCONFIG="+fragmentFile, "allnoconfig"); err != nil {
		return Build{}, fmt.Errorf("configure kernel: %w", err)
	}
	config, err := os.ReadFile(filepath.Join(src, configFile))
	if err != nil {
		return Build{}, fmt.Errorf("configure kernel: %w", err)
	}
	if err := checkConfig(fragment, config); err != nil {
		return Build{}, fmt.Errorf("configure kernel: %w", err)
	}
	if err := runMake(ctx, src, "-j"+strconv.Itoa(runtime.GOMAXPROCS(0)), "vmlinux"); err != nil {
		return Build{}, fmt.Errorf("build kernel: %w", err)
	}
	release, err := os.ReadFile(filepath.Join(src, "include", "config", "kernel.release"))
	if err != nil {
		return Build{}, fmt.Errorf("build kernel: %w", err)
	}
	return Build{
		Release:  strings.TrimSpace(string(release)),
		Config:   ConfigDigest(fragment),
		Compiler: strings.Trim(options(config)["CONFIG_CC_VERSION_TEXT"], `"`),
	}, nil
}

// runMake runs the kernel's make with nothing of the caller's environment but
// where programs are, since variables change what is built. The time in the
// kernel's banner is that of its source. It leaves the host's other work alone.
func runMake(ctx context.Context, src string, args ...string) error {
	info, err := os.Stat(filepath.Join(src, "Makefile"))
	if err != nil {
		return err
	}
	env := []string{
		"-i", "PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC",
		"KBUILD_BUILD_USER=emberd", "KBUILD_BUILD_HOST=emberd", "KBUILD_BUILD_VERSION=1",
		"KBUILD_BUILD_TIMESTAMP=" + info.ModTime().UTC().Format(time.DateTime),
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(info.ModTime().Unix(), 10),
		"nice", "-n", "10", "make", "--silent", "ARCH=x86_64",
	}
	_, err = command.Cmd{Name: "env", Args: append(env, args...), Dir: src}.Run(ctx)
	return err
}

// checkConfig compares what a fragment asks for with what Kconfig made of it. It
// leaves out without a word what has a dependency that is not there.
func checkConfig(fragment, config []byte) error {
	have := options(config)
	var dropped []string
	for line := range strings.Lines(string(fragment)) {
		line = strings.TrimSpace(line)
		name, value, on := option(line)
		if name == "" || have[name] == value && (on || have[name] == "") {
			continue
		}
		dropped = append(dropped, line)
	}
	if len(dropped) > 0 {
		return fmt.Errorf("the source does not follow %q", dropped)
	}
	return nil
}

// options returns the options that a configuration gives a value.
func options(config []byte) map[string]string {
	values := make(map[string]string)
	for line := range strings.Lines(string(config)) {
		if name, value, on := option(strings.TrimSpace(line)); on {
			values[name] = value
		}
	}
	return values
}

// option reads one line of a configuration. The name is empty if the line says
// nothing of an option, and on is false if it says that the option is off.
func option(line string) (name, value string, on bool) {
	if off, ok := strings.CutPrefix(line, "# CONFIG_"); ok {
		if name, ok := strings.CutSuffix(off, " is not set"); ok {
			return "CONFIG_" + name, "", false
		}
		return "", "", false
	}
	if name, value, ok := strings.Cut(line, "="); ok && strings.HasPrefix(name, "CONFIG_") {
		return name, value, true
	}
	return "", "", false
}

// InstallBuilt installs the kernel that [Compile] made of the source tree src
// for sandboxes, with its whole configuration beside it. A kernel that lacks one
// of [GuestModules] is refused.
func InstallBuilt(src string, to Files) error {
	for dst, file := range map[string]string{
		to.Image: "vmlinux",
		filepath.Join(filepath.Dir(to.Image), "config"): configFile,
		filepath.Join(to.Modules, builtinList):          builtinList,
	} {
		if err := copyFile(dst, filepath.Join(src, file)); err != nil {
			return fmt.Errorf("install built kernel: %w", err)
		}
	}
	ix, err := readIndex(to.Modules)
	if err != nil {
		return fmt.Errorf("install built kernel: %w", err)
	}
	if _, err := ix.loadOrder(GuestModules()); err != nil {
		return fmt.Errorf("install built kernel: %w", err)
	}
	return nil
}
