package template

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/sandbox"
)

// edit changes a file that nobody may write, in place and behind everybody's
// back: its time stays what it was.
func edit(t *testing.T, path string, change func(f *os.File, size int64) error) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(change(f, info.Size()), f.Close(), os.Chtimes(path, info.ModTime(), info.ModTime()), os.Chmod(path, 0o444))
	if err != nil {
		t.Fatal(err)
	}
}

func flip(bit int64) func(*os.File, int64) error {
	return func(f *os.File, size int64) error {
		var b [1]byte
		at := bit / 8 % size
		if _, err := f.ReadAt(b[:], at); err != nil {
			return err
		}
		b[0] ^= 1 << (bit % 8)
		_, err := f.WriteAt(b[:], at)
		return err
	}
}

// One bit that is not what it was, wherever it is, and the template is refused.
func TestEachFlippedBitIsRefused(t *testing.T) {
	const flips = 200
	f := newFixture(t)
	id := f.build().ID
	f.close()
	dir := filepath.Join(f.cfg.Dir, id)
	m, err := readManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range flips {
		for _, name := range []string{"state", "mem"} {
			path := filepath.Join(dir, name)
			bit := random.Int64N(1 << 40)
			if i%2 == 0 {
				bit %= 1 << 10 // where the fakes' memory is not empty
			}
			edit(t, path, flip(bit))
			if _, err := load(t.Context(), dir, m.Key, ""); err == nil || !strings.Contains(err.Error(), "has the digest") {
				t.Errorf("bit %d of %s: %v", bit, name, err)
			}
			edit(t, path, flip(bit))
		}
	}
	if _, err := load(t.Context(), dir, m.Key, ""); err != nil {
		t.Errorf("as it was: %v", err)
	}
}

// What is wrong with a template on the disk is found before a VMM sees it, and
// the template is made anew.
func TestUnsoundTemplatesAreRefused(t *testing.T) {
	rewrite := func(change func(*manifest)) func(*testing.T, string, string) {
		return func(t *testing.T, dir, _ string) {
			m, err := readManifest(dir)
			if err != nil {
				t.Fatal(err)
			}
			change(&m)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, manifestFile), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	swap := func(name string) func(*testing.T, string, string) {
		return func(t *testing.T, dir, other string) {
			a, b, c := filepath.Join(dir, name), filepath.Join(other, name), filepath.Join(dir, "c")
			if err := errors.Join(os.Rename(a, c), os.Rename(b, a), os.Rename(c, b)); err != nil {
				t.Fatal(err)
			}
		}
	}
	shorten := func(name string) func(*testing.T, string, string) {
		return func(t *testing.T, dir, _ string) {
			edit(t, filepath.Join(dir, name), func(f *os.File, size int64) error { return f.Truncate(size / 2) })
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir, other string)
	}{
		{"state flipped", func(t *testing.T, dir, _ string) { edit(t, filepath.Join(dir, "state"), flip(77)) }},
		{"memory flipped", func(t *testing.T, dir, _ string) { edit(t, filepath.Join(dir, "mem"), flip(1<<30+5)) }},
		{"state cut short", shorten("state")},
		{"memory cut short", shorten("mem")},
		{"state of another", swap("state")},
		{"memory of another", swap("mem")},
		{"state is gone", func(t *testing.T, dir, _ string) { must(t, os.Remove(filepath.Join(dir, "state"))) }},
		{"memory is a link", func(t *testing.T, dir, other string) {
			must(t, os.Remove(filepath.Join(dir, "mem")))
			must(t, os.Symlink(filepath.Join(other, "mem"), filepath.Join(dir, "mem")))
		}},
		{"memory can be written", func(t *testing.T, dir, _ string) { must(t, os.Chmod(filepath.Join(dir, "mem"), 0o666)) }},
		{"no manifest", func(t *testing.T, dir, _ string) { must(t, os.Remove(filepath.Join(dir, manifestFile))) }},
		{"not a manifest", func(t *testing.T, dir, _ string) {
			must(t, os.WriteFile(filepath.Join(dir, manifestFile), []byte("{"), 0o600))
		}},
		{"other Firecracker", rewrite(func(m *manifest) { m.Key.Host.Firecracker = "1.11.0" })},
		{"other snapshot format", rewrite(func(m *manifest) { m.Key.Host.SnapshotFormat = "v5.0.0" })},
		{"other CPU", rewrite(func(m *manifest) { m.Key.Host.CPU = "another" })},
		{"other host kernel", rewrite(func(m *manifest) { m.Key.Host.Kernel = "another" })},
		{"other size", rewrite(func(m *manifest) { m.Key.Size.VCPUs = 2 })},
		{"other pack", rewrite(func(m *manifest) { m.Key.Rootfs = "another" })},
		{"other agent", rewrite(func(m *manifest) { m.Key.Initramfs = "another" })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			dir := filepath.Join(f.cfg.Dir, f.build().ID)
			info, err := f.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.Size{VCPUs: 1, MemoryMiB: 512}})
			if err != nil {
				t.Fatal(err)
			}
			f.close()
			tt.spoil(t, dir, filepath.Join(f.cfg.Dir, info.ID))

			f.open()
			started := f.log.String()
			f.faults.Do(firecracker.FaultLoad, func() error { return errors.New("a VMM was given a template") })
			f.faults.Do(firecracker.FaultLaunch, func() error { return errors.New("a VMM was started") })
			if _, err := f.Build(t.Context(), Kind{Pack: f.shell(), Size: sandbox.DefaultSize}); err == nil || !strings.Contains(err.Error(), "a VMM was started") {
				t.Errorf("it was used: %v", err) // and not made anew
			}
			log := strings.TrimPrefix(f.log.String(), started)
			if !strings.Contains(log, "template is refused") && !strings.Contains(f.log.String(), "removing a template") {
				t.Errorf("the log does not say that it was refused:\n%s", log)
			}
			if slices.Contains(f.entries(), filepath.Base(dir)) {
				t.Errorf("it is still there: %q", f.entries())
			}
		})
	}
}

// A template that is changed while it is in use is found out at the next
// restore.
func TestTemplateThatChangesInUseIsDiscarded(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, path string){
		"written": func(t *testing.T, path string) {
			must(t, errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte("x"), 0o600), os.Chmod(path, 0o444)))
		},
		"replaced": func(t *testing.T, path string) {
			must(t, errors.Join(os.Rename(path, path+"-away"), os.WriteFile(path, nil, 0o444)))
		},
		"gone":     func(t *testing.T, path string) { must(t, os.Remove(path)) },
		"writable": func(t *testing.T, path string) { must(t, os.Chmod(path, 0o666)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			spoil(t, filepath.Join(f.cfg.Dir, f.build().ID, "mem"))
			loaded := false
			f.faults.Do(firecracker.FaultLoad, func() error { loaded = true; return nil })
			if path := f.provide(); path != sandbox.ColdBoot || loaded {
				t.Errorf("a VM came by %s; loaded: %v", path, loaded)
			}
			f.build()
			if path := f.provide(); path != sandbox.Restored {
				t.Errorf("a VM came by %s", path)
			}
			if got, want := f.Counts(), (Counts{Builds: 2, Refused: 1, FailedRestores: 1}); got != want {
				t.Errorf("counted %+v, want %+v", got, want)
			}
		})
	}
}

// Templates that were being made, and those of another time, go when the next
// daemon starts.
func TestOldTemplatesAreRemoved(t *testing.T) {
	f := newFixture(t)
	f.build()
	f.close()
	must(t, os.Mkdir(filepath.Join(f.cfg.Dir, "0123456789abcdef"+partialSuffix), 0o700))
	must(t, os.Mkdir(filepath.Join(f.cfg.Dir, "0123456789abcdef"), 0o700))
	f.cfg.Host.Kernel = "6.1.0"
	f.open()
	<-f.swept
	if left := f.entries(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	f.build()
}

// The digest of memory does not depend on what of it is a hole, and covers the
// rest.
func TestDigestOfSparseFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int64, at map[int64]string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		must(t, err)
		must(t, f.Truncate(size))
		for off, s := range at {
			_, err := f.WriteAt([]byte(s), off)
			must(t, err)
		}
		must(t, f.Close())
		return path
	}
	digest := func(path string) string {
		t.Helper()
		d, err := digestPages(t.Context(), path)
		must(t, err)
		return d
	}
	const size = 5 << 20
	zeros := strings.Repeat("\x00", 3<<20)
	sparse := write("sparse", size, map[int64]string{0: "a", 4<<20 + 7: "b"})
	dense := write("dense", size, map[int64]string{0: "a", 1 << 20: zeros, 4<<20 + 7: "b"})
	want := digest(sparse)
	if got := digest(dense); got != want {
		t.Error("written zeros make a difference")
	}
	if got, err := punch(t.Context(), dense); err != nil || got != want || digest(dense) != want {
		t.Errorf("punched: %s, %v, want %s", got, err, want)
	}
	before, after := room(sparse), room(dense)
	if after > before {
		t.Errorf("it takes %d bytes after the zeros are gone, a sparse one %d", after, before)
	}
	others := map[string]string{}
	for name, path := range map[string]string{
		"longer": write("1", size+1, map[int64]string{0: "a", 4<<20 + 7: "b"}),
		"moved":  write("2", size, map[int64]string{0: "a", 3<<20 + 7: "b"}),
		"inside": write("3", size, map[int64]string{0: "a", 4<<20 + 8: "b"}),
		"empty":  write("4", size, nil),
		"more":   write("5", size, map[int64]string{0: "a", 2 << 20: "c", 4<<20 + 7: "b"}),
		"tail":   write("6", size-1, map[int64]string{0: "a", 4<<20 + 7: "b"}),
		"none":   write("7", 0, nil),
	} {
		d := digest(path)
		if d == want || others[d] != "" {
			t.Errorf("%s has the digest of another file (%s)", name, others[d])
		}
		others[d] = name
	}
}

// room is how much of the disk a file takes.
func room(path string) int64 {
	bytes, _ := (&template{snapshot: firecracker.Snapshot{State: path}}).size()
	return bytes
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
