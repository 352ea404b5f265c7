package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/internal/sandbox"
)

// attacker is the user that a VMM, or somebody else on the host, would be.
const attacker = 1_999_998_000

// attackEnv makes this test binary the attacker, in the directory it names.
const attackEnv = "EMBERD_TEST_ATTACK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(attackEnv); dir != "" {
		attack(dir, os.Args[1])
	}
	goleak.VerifyTestMain(m)
}

// attack swaps every directory it finds below dir with a link to victim, and
// back, for as long as it lives. It writes a byte for each link it has placed.
func attack(dir, victim string) {
	for {
		roots, _ := filepath.Glob(dir + "/*/*/root")
		for _, root := range roots {
			for _, name := range []string{"dev", "run", "rootfs"} {
				path := filepath.Join(root, name)
				_ = os.Rename(path, path+"-away")
				if os.Symlink(victim, path) == nil {
					_, _ = os.Stdout.WriteString(".")
				}
				_ = os.Remove(path)
				_ = os.Rename(path+"-away", path)
				_ = os.WriteFile(filepath.Join(path, "canary"), nil, 0o600)
			}
		}
	}
}

// startAttack starts the attacker, which ends with the test, and counts its
// links.
func startAttack(t *testing.T, dir, victim string) *atomic.Int64 {
	t.Helper()
	// The attacker may run this binary wherever the test has put it.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = self.Close() }()
	cmd := exec.Command("/proc/self/fd/3", victim)
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = []string{attackEnv + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: attacker, Gid: attacker}}
	var links counter
	cmd.Stdout = &links
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &links.n
}

// counter counts the bytes written to it.
type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// victim is a directory that must not change, with the function that checks it.
func newVictim(t *testing.T) (dir string, check func()) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "canary"), []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "dev", "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, func() {
		t.Helper()
		var found []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				found = append(found, strings.TrimPrefix(path, dir))
			}
			return err
		})
		content, err2 := os.ReadFile(filepath.Join(dir, "canary"))
		if err != nil || err2 != nil || string(content) != "alive" || strings.Join(found, " ") != " /canary /dev /dev/run" {
			t.Fatalf("outside of the jails: %q, %q, %v, %v", found, content, err, err2)
		}
	}
}

// Jails are made and removed while a VMM's user puts ten thousand links into the
// root directories that it is given, as a VMM that was taken over would.
func TestRootsWithstandTheirOwner(t *testing.T) {
	const races = 10_000
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	j := newJailer(t)
	if err := j.dir.MkdirAll(j.execName(), 0o700); err != nil {
		t.Fatal(err)
	}
	openToAll(t, filepath.Join(j.cfg.Dir, j.execName()))
	victim, check := newVictim(t)
	source := image(t)
	links := startAttack(t, j.cfg.Dir, victim)
	rounds := 0
	for ; links.Load() < races; rounds++ {
		name := fmt.Sprint("vm-", rounds)
		if err := errors.Join(j.makeRoot(name), j.place(name, shared("rootfs", source))); err != nil {
			t.Fatal(err)
		}
		// The jailer hands the root directory over, and what it makes in it.
		root := filepath.Join(j.cfg.Dir, j.rootDir(name))
		for _, dir := range []string{"dev", "run"} {
			_ = os.Mkdir(filepath.Join(root, dir), 0o700)
			_ = os.Lchown(filepath.Join(root, dir), attacker, attacker)
		}
		if err := errors.Join(os.Lchown(root, attacker, attacker), os.Chmod(filepath.Dir(root), 0o755)); err != nil {
			t.Fatal(err)
		}
		for placed := links.Load(); links.Load() < placed+races/1000; {
			runtime.Gosched() // until the attacker is at work in it
		}
		// What is filled while it is emptied may not go at once. A VMM that is
		// removed runs no more.
		for tries := 0; ; tries++ {
			err := j.removeRoot(name)
			if err == nil {
				break
			}
			if tries > 10_000 {
				t.Fatal(err)
			}
		}
		check()
	}
	t.Logf("%d jails, %d links", rounds, links.Load())
	if content, err := os.ReadFile(source); err != nil || string(content) != "image" {
		t.Errorf("the shared image is %q, %v", content, err)
	}
}

// openToAll lets every user through to dir. A jailed process is there without a
// way; an attacker in a test needs one.
func openToAll(t *testing.T, dir string) {
	t.Helper()
	for ; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPlantedPathsAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	victim, check := newVictim(t)
	for name, plant := range map[string]func(base string) error{
		"the directory is a link of somebody's": func(base string) error {
			return errors.Join(os.Symlink(victim, base+"/data"), os.Lchown(base+"/data", attacker, attacker))
		},
		"the directory of jails is a link of somebody's": func(base string) error {
			return errors.Join(os.Mkdir(base+"/data", 0o755), os.Symlink(victim, base+"/data/jail"), os.Lchown(base+"/data/jail", attacker, attacker))
		},
		"the directory of jails is a link": func(base string) error {
			return errors.Join(os.Mkdir(base+"/data", 0o755), os.Symlink(victim, base+"/data/jail"))
		},
		"the directory is somebody's": func(base string) error {
			return errors.Join(os.Mkdir(base+"/data", 0o755), os.Lchown(base+"/data", attacker, attacker))
		},
		"the directory is everybody's": func(base string) error {
			return errors.Join(os.Mkdir(base+"/data", 0o755), os.Chmod(base+"/data", 0o777))
		},
		"the directory is a group's": func(base string) error {
			return errors.Join(os.Mkdir(base+"/data", 0o755), os.Chmod(base+"/data", 0o775))
		},
		"the directory of jails can be read": func(base string) error {
			return os.MkdirAll(base+"/data/jail", 0o755)
		},
		"the directory of jails is a file": func(base string) error {
			return errors.Join(os.Mkdir(base+"/data", 0o755), os.WriteFile(base+"/data/jail", nil, 0o600))
		},
	} {
		base := t.TempDir()
		if err := plant(base); err != nil {
			t.Fatal(err)
		}
		if root, err := openDir(filepath.Join(base, "data", "jail")); err == nil {
			_ = root.Close()
			t.Errorf("accepted: %s", name)
		}
		check()
	}
}

func TestALinkInTheWayOfAJailIsRefused(t *testing.T) {
	for _, path := range []string{"firecracker", "firecracker/vm-1"} {
		j := newJailer(t)
		victim, check := newVictim(t)
		at := filepath.Join(j.cfg.Dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o700), os.Symlink(victim, at)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(j.makeRoot("vm-1"), j.place("vm-1", shared("rootfs", image(t)))); err == nil {
			t.Errorf("%s is a link and was used", path)
		}
		check()
		_ = j.removeRoot("vm-1")
		check()
	}
}

func TestMakeRootLinksAndSharesNothingElse(t *testing.T) {
	j := newJailer(t)
	source := image(t)
	files := append(shared("rootfs", source), sandbox.JailFile{Path: "/dev", Kind: "dir"})
	if err := errors.Join(j.makeRoot("vm-1"), j.place("vm-1", files)); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(j.cfg.Dir, "firecracker", "vm-1", "root")
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 {
		t.Fatalf("the root directory holds %v, %v", entries, err)
	}
	linked, err := os.Stat(filepath.Join(root, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	original, err := os.Stat(source)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(linked, original) {
		t.Error("the image was copied")
	}
	if err := j.makeRoot("vm-1"); !errors.Is(err, os.ErrExist) {
		t.Errorf("a root directory was used twice: %v", err)
	}
}

func TestOnlySoundFilesAreShared(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	sound := image(t)
	if err := errors.Join(
		os.Symlink(sound, at("link")),
		os.Mkdir(at("dir"), 0o700),
		syscall.Mkfifo(at("fifo"), 0o600),
		os.WriteFile(at("group"), nil, 0o600), os.Chmod(at("group"), 0o464),
		os.WriteFile(at("world"), nil, 0o600), os.Chmod(at("world"), 0o446),
		os.WriteFile(at("theirs"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	names := []string{"link", "dir", "fifo", "group", "world", "absent"}
	if os.Geteuid() == 0 {
		if err := os.Lchown(at("theirs"), attacker, 0); err != nil {
			t.Fatal(err)
		}
		names = append(names, "theirs")
	}
	for i, name := range names {
		j := newJailer(t)
		vm := fmt.Sprint("vm-", i)
		if err := errors.Join(j.makeRoot(vm), j.place(vm, shared("rootfs", at(name)))); err == nil {
			t.Errorf("%s was shared", name)
		}
	}
	if os.Geteuid() == 0 {
		j := newJailer(t)
		if err := errors.Join(j.makeRoot("vm-1"), j.place("vm-1", shared("rootfs", "/dev/null"))); err == nil {
			t.Error("a device was shared")
		}
	}
}
