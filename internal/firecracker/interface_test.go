package firecracker_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/sandbox"
)

// The device of the network interface is made once there is a VMM and before there
// is a VM, which cannot be without it.
func TestInterfaceIsMadeFirst(t *testing.T) {
	dir, err := os.MkdirTemp("", "fc") //nolint:usetesting // its sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &fctest.Launcher{Dir: dir}
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	boot := func(attach firecracker.Attach) (*firecracker.VM, error) {
		return firecracker.Boot(t.Context(), l, firecracker.Config{
			ID: sandbox.NewVMID(), Size: sandbox.DefaultSize, Kernel: image, Initrd: image, Rootfs: image, BootArgs: "quiet",
			Interface: &firecracker.Interface{TAP: "tap7", Attach: attach},
		}, nil)
	}
	attached := 0
	vm, err := boot(func(_ context.Context, jail sandbox.Jail) error {
		attached++
		if pids := l.Running(); len(pids) != 1 || jail.PID != pids[0] || jail.UID != os.Getuid() {
			t.Errorf("attached to %d of user %d; VMMs: %v", jail.PID, jail.UID, pids)
		}
		return os.WriteFile(filepath.Join(jail.Root, "tap-tap7"), nil, 0o600)
	})
	if err != nil || attached != 1 {
		t.Fatalf("booted: %v, attached %d times", err, attached)
	}
	if err := vm.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	_, err = boot(func(context.Context, sandbox.Jail) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "/network-interfaces/eth0") || len(l.Running()) > 0 {
		t.Errorf("booted without the device: %v, VMMs: %v", err, l.Running())
	}
}
