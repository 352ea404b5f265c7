package pack

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/guest/boot"
	"github.com/emberd/emberd/internal/guest/warm"
	"github.com/emberd/emberd/internal/paths"
)

// A manifest that is taken says what can stand on a kernel's command line, and
// an image that is taken is as long as both say.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"name":"python","interpreter":"python3","size":96}`), fakeImage(superblockLen))
	f.Add([]byte(`{"name":"python","interpreter":"python3 init=/bin/sh","size":96}`), fakeImage(superblockLen))
	f.Add([]byte(`{"name":"python","interpreter":"node","size":96,"code_flag":"-e","file_flag":"--","warm":{"kind":"prestart","argv":["node","","a=b"]}}`), fakeImage(superblockLen))
	f.Add([]byte(`{"name":"python","interpreter":"node","size":96,"warm":{"kind":"prestart","argv":["node"],"watch":["/a","b c"]}}`), fakeImage(superblockLen))
	f.Add([]byte(`{"name":"python","interpreter":"node","size":96,"warm":{"kind":"prestart","argv":["node","a,b emberd.role=machine"]}}`), fakeImage(superblockLen))
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
		// The guest learns what the manifest says and nothing else.
		told := boot.ParseCmdline(p.BootArgs())
		want := boot.Params{Interpreter: p.Interpreter, CodeFlag: p.CodeFlag, FileFlag: p.FileFlag, Warm: told.Warm, Watch: told.Watch}
		if told != want || p.Interpreter == "" || p.Name != "python" {
			t.Fatalf("%+v becomes %q, which the guest takes for %+v", p, p.BootArgs(), told)
		}
		if strings.ContainsFunc(p.BootArgs(), func(r rune) bool { return r > '~' || r < ' ' || r == '"' }) {
			t.Fatalf("the command line is %q", p.BootArgs())
		}
		if p.Warm != nil {
			recipe, err := warm.ParseRecipe(told.Warm, told.Watch)
			if err != nil || string(recipe.Kind) != p.Warm.Kind || !slices.Equal(recipe.Argv, p.Warm.Argv) || !slices.Equal(recipe.Watch, p.Warm.Watch) {
				t.Fatalf("%+v becomes %+v, %v", p.Warm, recipe, err)
			}
		} else if told.Warm+told.Watch != "" {
			t.Fatalf("the guest warms up with %q", told.Warm)
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
