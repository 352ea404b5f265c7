package setup

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/digest"
	"github.com/emberd/emberd/internal/x/source"
)

// putPack makes a pack that passes for one built from def.
func putPack(t *testing.T, data paths.Data, def pack.Definition) {
	t.Helper()
	image := make([]byte, 4096)
	copy(image, "hsqs")
	write(t, data.PackRootfs(def.Name), string(image), 0o644)
	raw, err := json.Marshal(pack.Manifest{
		Name: def.Name, Interpreter: def.Interpreter, Size: int64(len(image)), Definition: def.Digest(),
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, data.PackManifest(def.Name), string(raw), 0o644)
}

// A second setup does nothing, and needs no program to find that out.
func TestRunAgain(t *testing.T) {
	if _, err := os.Stat(debianKeyring); err != nil {
		t.Skip("a host without Debian's keyring: setup would install it")
	}
	c := Config{Data: paths.Data(t.TempDir())}
	write(t, c.Data.Firecracker(), "vmm", 0o755)
	write(t, c.Data.Jailer(), "jail", 0o755)
	vmm := vmmRecord{Version: "1.15.1"}
	var err error
	if vmm.Firecracker, err = digest.File(c.Data.Firecracker()); err != nil {
		t.Fatal(err)
	}
	if vmm.Jailer, err = digest.File(c.Data.Jailer()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{c.Data.Vmlinux(), filepath.Join(c.Data.GuestModules(), "m")} {
		write(t, path, "", 0o644)
	}
	guest := kernel.Record{
		Package: "linux", Version: "6.1", Pin: kernelPackage().version, Parts: kernelParts(kernel.GuestModules()),
	}
	for dir, rec := range map[string]any{
		filepath.Dir(c.Data.Firecracker()): vmm, c.Data.GuestKernel(): guest,
	} {
		if err := source.Write(dir, rec); err != nil {
			t.Fatal(err)
		}
	}
	defs, err := pack.Definitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, def := range defs {
		putPack(t, c.Data, def)
	}
	fakePath(t, map[string]string{"mmdebstrap": "exit 1", "mksquashfs": "exit 1", "mke2fs": "exit 1"})

	var steps []string
	res, err := Run(t.Context(), c, func(step string) { steps = append(steps, step) })
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Made) > 0 || len(steps) > 0 {
		t.Errorf("made %q in the steps %q, want nothing done", res.Made, steps)
	}
	if res.Firecracker != "1.15.1" || res.Kernel != "Debian's linux 6.1" {
		t.Errorf("got %+v", res)
	}
	entries, err := os.ReadDir(string(c.Data))
	if err != nil || len(entries) != 3 {
		t.Errorf("the data directory holds %v, %v, want what was there", entries, err)
	}
}
