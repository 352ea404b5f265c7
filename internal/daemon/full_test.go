package daemon

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/testenv"
)

// mountSmall is a directory on a small filesystem of its own, in a test that has
// its own mounts.
func mountSmall(t *testing.T) string {
	t.Helper()
	dir := shortDir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=192m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fctest.Data(t, filepath.Join(dir, "data"))
	return dir
}

// fill takes all the room there is in dir. What it returns gives it back.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2]
		}
	}
	return func() {
		if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
			t.Error(err)
		}
	}
}

// A full disk is said to be the reason, by a code of its own. Sandboxes that are
// there go on, and can be deleted; with room again the same request succeeds, and
// the next daemon finds everything.
func TestFullDisk(t *testing.T) {
	if !testenv.OwnMounts(t) {
		return
	}
	s := standIn(t, mountSmall(t))
	order := daemontest.Order{Dir: s.Dir, Templates: true, Keep: true}
	d := daemontest.Start(t, order)
	d.AwaitReady()
	var ids []string
	for range 2 {
		id, err := d.Create(t.Context(), "shell", client.WithBootPath("cold-boot"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	empty := fill(t, s.Dir)
	for range 3 {
		_, err := d.Create(t.Context(), "shell", client.WithBootPath("cold-boot"))
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusInsufficientStorage || e.Code != "disk_full" {
			t.Errorf("create: %+v, %v", e, err)
		}
	}
	if _, err := d.BuildTemplate(t.Context(), daemontest.Shell); err == nil {
		t.Error("a template was built")
	}
	if res, err := d.Exec(t.Context(), ids[0], client.Program{Code: "exit 5"}); err != nil || res.ExitCode != 5 {
		t.Errorf("exec: %+v, %v", res, err)
	}
	if err := d.Delete(t.Context(), ids[1]); err != nil {
		t.Errorf("delete: %v", err)
	}
	list, err := d.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != ids[0] {
		t.Errorf("listed: %+v, %v", list, err)
	}
	await(t, "one VMM", func() bool { return s.VMMs() == 1 })
	empty()
	id, err := d.Create(t.Context(), "shell", client.WithBootPath("cold-boot"))
	if err != nil {
		t.Errorf("with room again: %v", err)
	}
	if _, err := d.BuildTemplate(t.Context(), daemontest.Shell); err != nil {
		t.Errorf("with room again: %v", err)
	}

	d.Kill()
	order.Keep = false
	d = daemontest.Start(t, order)
	d.AwaitReady()
	for _, id := range []string{ids[0], id} {
		if res, err := d.Exec(t.Context(), id, client.Program{Code: "exit 5"}); err != nil || res.ExitCode != 5 {
			t.Errorf("after a restart: %+v, %v", res, err)
		}
	}
	d.Stop()
	for _, left := range s.Left() {
		t.Errorf("left behind: %s", left)
	}
}
