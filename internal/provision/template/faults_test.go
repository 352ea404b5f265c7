package template

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// A disk that is full while a template is made is told, and leaves nothing of it
// behind; with room again the template is made.
func TestFullDisk(t *testing.T) {
	if !testenv.OwnMounts(t) {
		return
	}
	small := t.TempDir()
	must(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, unix.Unmount(small, 0)) })
	t.Setenv("TMPDIR", small)
	f := newFixture(t)
	filler := filepath.Join(small, "filler")
	for _, point := range []string{firecracker.FaultSave, FaultWrite} {
		t.Run(point, func(t *testing.T) {
			f.faults.Do(point, func() error { fill(t, filler); return nil })
			_, err := f.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize})
			if err == nil || !strings.Contains(err.Error(), "no space left on device") {
				t.Errorf("built: %v", err)
			}
			list := f.List()
			if len(list) != 1 || list[0].State != Failed || list[0].Err == nil || !strings.Contains(list[0].Err.Error(), "no space left") {
				t.Errorf("listed: %+v", list)
			}
			if left := f.entries(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			if pids := f.launcher.Running(); len(pids) > 0 {
				t.Errorf("VMMs left running: %v", pids)
			}
			f.faults.Do(point, func() error { return nil })
			must(t, os.Remove(filler))

			must(t, f.Remove(f.build().ID))
		})
	}
	f.build()
	if path := f.provide(); path != sandbox.Restored {
		t.Errorf("a VM came by %s", path)
	}
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Error(err)
		return
	}
	page := make([]byte, pageSize)
	for err == nil {
		_, err = f.Write(page)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("fill the disk: %v", err)
	}
	must(t, f.Close())
}

// A guest that does not answer after its restore is given up, and the request is
// answered by a boot; so is the next one, when guests keep silent, until the
// template is taken for bad.
func TestSilenceAfterRestore(t *testing.T) {
	for _, mode := range []fctest.Mode{fctest.Silent, fctest.Mute, fctest.Stillborn} {
		t.Run(string(mode), func(t *testing.T) {
			const patience = 500 * time.Millisecond
			f := newFixture(t, func(c *Config) { c.RestoreTimeout = patience })
			f.build()
			f.launcher.Next(mode)
			began := time.Now()
			if path := f.provide(); path != sandbox.ColdBoot {
				t.Errorf("a VM came by %s", path)
			}
			if took := time.Since(began); took > patience+5*time.Second {
				t.Errorf("it took %v", took)
			}
			if path := f.provide(); path != sandbox.Restored {
				t.Errorf("the next VM came by %s", path)
			}

			req := f.request()
			req.BootPath = sandbox.Restored
			for range maxSuspect {
				f.launcher.Next(mode)
				if _, err := f.Provision(t.Context(), req); !errors.Is(err, sandbox.ErrBoot) {
					t.Errorf("restored: %v", err)
				}
				if pids := f.launcher.Running(); len(pids) > 0 {
					t.Errorf("VMMs left running: %v", pids)
				}
			}
			if left := f.entries(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// A guest that does not answer as its template is proved has one more try.
func TestSilenceWhileProved(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.RestoreTimeout = 500 * time.Millisecond })
	f.faults.Do(FaultProve, func() error {
		f.launcher.Next(fctest.Mute)
		return nil
	})
	f.build()
	if got, want := f.Counts(), (Counts{Builds: 1, FailedRestores: 1}); got != want {
		t.Errorf("counted is %+v, want %+v", got, want)
	}
	if path := f.provide(); path != sandbox.Restored {
		t.Errorf("a VM came by %s", path)
	}
}
