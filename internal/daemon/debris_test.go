package daemon

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/sandbox"
)

// A daemon that begins among what others left removes what is emberd's and no
// sandbox's, however much it is, and touches nothing that only looks like it.
func TestDebris(t *testing.T) {
	s := fakeStand(t)
	order := daemontest.Order{Dir: s.Dir}
	d := daemontest.Start(t, order)
	d.AwaitReady()
	var ids []string
	for range 6 {
		id, err := d.Create(t.Context(), "shell")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	kept := ids[0]
	in, err := d.Inspect(t.Context(), kept)
	if err != nil {
		t.Fatal(err)
	}
	d.Kill()

	// Five microVMs without a record, and what is left of two hundred.
	records := filepath.Join(s.Dir, "run", "sandboxes")
	for _, id := range ids[1:] {
		must(t, os.Remove(filepath.Join(records, id+".json")))
	}
	vms, err := filepath.Glob(filepath.Join(s.Dir, "run", "vms", "*"))
	must(t, err)
	for _, path := range vms {
		if filepath.Base(path) != filepath.Base(in.Jail.Root)+".json" {
			must(t, os.Remove(path))
		}
	}
	for i := range 200 {
		dir := filepath.Join(s.Dir, string(sandbox.NewVMID()))
		must(t, os.Mkdir(dir, 0o700))
		if i%10 == 0 { // with the socket of a VMM that has ended
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
			must(t, err)
			l.SetUnlinkOnClose(false)
			must(t, l.Close())
		}
	}
	// What is not emberd's: names that are nearly those of microVMs, a stranger in
	// one of them, and a file among the records.
	foreign := []string{filepath.Join(s.Dir, "vm-backup"), filepath.Join(s.Dir, "vm-0123456789abc"), filepath.Join(s.Dir, "notes")}
	for _, dir := range foreign {
		must(t, os.Mkdir(dir, 0o700))
	}
	foreign = append(foreign, filepath.Join(records, "README"))
	must(t, os.WriteFile(filepath.Join(records, "README"), nil, 0o600))
	stranger := exec.Command("sleep", "600")
	stranger.Dir = foreign[0]
	must(t, stranger.Start())
	t.Cleanup(func() { _, _ = stranger.Process.Kill(), stranger.Wait() })

	d = daemontest.Start(t, order)
	if err := d.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	d.AwaitReady()
	t.Logf("ready after %v", d.TookReady)
	if list, err := d.List(t.Context()); err != nil || len(list) != 1 || list[0].ID != kept {
		t.Errorf("listed: %+v, %v", list, err)
	}
	if res, err := d.Exec(t.Context(), kept, client.Program{Code: "exit 5"}); err != nil || res.ExitCode != 5 {
		t.Errorf("%+v, %v", res, err)
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, "vm-*"))
	if err != nil || len(left) != 3 {
		t.Errorf("left: %v, %v; want the sandbox's and two that are not emberd's", left, err)
	}
	for _, path := range foreign {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("not emberd's, and gone: %v", err)
		}
	}
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger was ended: %v", err)
	}
	must(t, stranger.Process.Kill())
	_ = stranger.Wait()
	d.Stop()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
