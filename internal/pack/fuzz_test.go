package pack

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/paths"
)

// A manifest that is taken says what can stand on a kernel's command line, and
// an image that is taken is as long as both say.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"name":"python","interpreter":"python3","size":96}`), fakeImage(superblockLen))
	f.Add([]byte(`{"name":"python","interpreter":"python3 init=/bin/sh","size":96}`), fakeImage(superblockLen))
	f.Add([]byte(`{"name":"../python","interpreter":"sh","size":-1}`), []byte("hsqs"))
	f.Add([]byte(`{"name":"python","interpreter":"sh\n","size":0}`), []byte{})
	f.Add([]byte(`[]`), fakeImage(200)[:100])
	data := paths.Data(f.TempDir())
	if err := os.MkdirAll(filepath.Dir(data.PackManifest("python")), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, manifest, image []byte) {
		for path, b := range map[string][]byte{data.PackManifest("python"): manifest, data.PackRootfs("python"): image} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, err := load(data, "python")
		if err != nil {
			if p != (Pack{}) {
				t.Fatalf("%+v came with %v", p, err)
			}
			return
		}
		if p.Name != "python" || p.Interpreter == "" || strings.Trim(p.Interpreter, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/+-") != "" {
			t.Fatalf("taken: %+v", p)
		}
		if len(image) < superblockLen || string(image[:4]) != "hsqs" || binary.LittleEndian.Uint64(image[bytesUsedOffset:]) > uint64(len(image)) {
			t.Fatalf("an image of %d bytes was taken", len(image))
		}
	})
}

// No path of a definition that is taken leads out of the image.
func FuzzDefinition(f *testing.F) {
	f.Add([]byte(ownTOML))
	f.Add([]byte(ownTOML + "[[remove]]\nwhy = \"x\"\npaths = [\"../x\"]\n"))
	f.Add([]byte(ownTOML + "[[directories]]\npath = \"/tmp\"\nmode = 0o1777\n"))
	f.Add([]byte(ownTOML + "[links]\n\"a/../../b\" = \"c\"\n"))
	f.Add([]byte("name = \"x\"\nname = \"y\"\n"))
	f.Fuzz(func(t *testing.T, own []byte) {
		d, err := parseDefinition(scripts, []byte(baseTOML), own)
		if err != nil {
			return
		}
		local := func(p string) {
			if strings.HasPrefix(filepath.Clean(p)+"/", "../") || strings.HasPrefix(p, "/") {
				t.Errorf("%q is taken", p)
			}
		}
		for p := range d.Links {
			local(p)
		}
		for p := range d.Files {
			local(p)
		}
		for _, dir := range d.Directories {
			local(dir.Path)
		}
		for _, r := range d.Remove {
			for _, p := range r.Paths {
				local(p)
			}
		}
		if strings.ContainsAny(d.Name, "/. \n\x00") {
			t.Errorf("the name %q is taken", d.Name)
		}
	})
}
