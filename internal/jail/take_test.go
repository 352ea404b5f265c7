package jail

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Only what is certainly the VMM's own file is taken, and what is taken can be
// shared.
func TestTakeTakesOwnFilesOnly(t *testing.T) {
	j := newJailer(t)
	victim := image(t)
	if err := j.makeRoot("vm-1"); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(j.cfg.Dir, j.rootDir("vm-1"))
	at := func(name string) string { return filepath.Join(root, name) }
	if err := errors.Join(
		os.WriteFile(at("good"), []byte("memory"), 0o600),
		os.WriteFile(at("second"), []byte("memory"), 0o600),
		os.Symlink(victim, at("link")), os.Link(victim, at("hardlink")), os.Mkdir(at("dir"), 0o700),
		syscall.Mkfifo(at("fifo"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "taken")
	for _, name := range []string{"link", "hardlink", "dir", "fifo", "absent"} {
		if err := j.take("vm-1", name, to, os.Geteuid()); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if err := j.take("vm-1", "good", to, os.Geteuid()+1); err == nil {
		t.Error("a file of somebody else's was taken")
	}
	if err := j.take("vm-1", "good", to, os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(to)
	if err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("taken: %v, %v", info.Mode(), err)
	}
	if err := j.take("vm-1", "second", to, os.Geteuid()); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file was replaced: %v", err)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "image" {
		t.Errorf("the victim is %q, %v", b, err)
	}
}
