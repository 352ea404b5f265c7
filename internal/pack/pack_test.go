package pack

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/digest"
)

// fakeImage is size bytes that pass for squashfs.
func fakeImage(size int) []byte {
	b := make([]byte, size)
	binary.LittleEndian.PutUint32(b[magicOffset:], squashfsMagic)
	binary.LittleEndian.PutUint64(b[bytesUsedOffset:], uint64(size))
	return b
}

// put makes a built pack called name.
func put(t *testing.T, data paths.Data, name string) Manifest {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(data.PackRootfs(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	image := fakeImage(4096)
	if err := os.WriteFile(data.PackRootfs(name), image, 0o644); err != nil {
		t.Fatal(err)
	}
	sum, err := digest.File(data.PackRootfs(name))
	if err != nil {
		t.Fatal(err)
	}
	m := Manifest{Name: name, Interpreter: name + "-interpreter", Digest: sum, Size: int64(len(image))}
	if err := writeManifest(data.PackManifest(name), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLoad(t *testing.T) {
	data := paths.Data(t.TempDir())
	m := put(t, data, "python")
	put(t, data, "shell")
	if err := os.Mkdir(filepath.Join(data.Packs(), partialPrefix+"x"), 0o755); err != nil {
		t.Fatal(err)
	}

	r, err := Load(data)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Names(), []string{"python", "shell"}; !slices.Equal(got, want) {
		t.Errorf("got packs %v, want %v", got, want)
	}
	got, err := r.Get("python")
	want := Pack{Name: "python", RootfsPath: data.PackRootfs("python"), Interpreter: "python-interpreter", CodeFlag: "-c", Digest: m.Digest}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	_, err = r.Get("ruby")
	if !errors.Is(err, sandbox.ErrUnknownPack) || err.Error() != `unknown language pack: "ruby"` {
		t.Errorf("Get(ruby): got %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	data := func(t *testing.T) paths.Data {
		d := paths.Data(t.TempDir())
		put(t, d, "python")
		return d
	}
	rewrite := func(t *testing.T, path string, change func([]byte) []byte) {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(raw), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		spoil func(t *testing.T, d paths.Data)
		// want is part of the error, beside the name of the pack and of the file.
		want string
		file func(paths.Data) string
	}{
		"image missing": {
			func(t *testing.T, d paths.Data) { os.Remove(d.PackRootfs("python")) },
			"rootfs image is missing", func(d paths.Data) string { return d.PackRootfs("python") },
		},
		"image is a directory": {
			func(t *testing.T, d paths.Data) {
				os.Remove(d.PackRootfs("python"))
				os.Mkdir(d.PackRootfs("python"), 0o755)
			},
			"not a regular file", func(d paths.Data) string { return d.PackRootfs("python") },
		},
		"image is a link": {
			func(t *testing.T, d paths.Data) {
				os.Rename(d.PackRootfs("python"), d.PackRootfs("python")+".moved")
				os.Symlink(d.PackRootfs("python")+".moved", d.PackRootfs("python"))
			},
			"not a regular file", func(d paths.Data) string { return d.PackRootfs("python") },
		},
		"image of another size": {
			func(t *testing.T, d paths.Data) {
				rewrite(t, d.PackRootfs("python"), func(b []byte) []byte { return b[:2048] })
			},
			"2048 bytes, its manifest says 4096", func(d paths.Data) string { return d.PackRootfs("python") },
		},
		"no squashfs": {
			func(t *testing.T, d paths.Data) {
				rewrite(t, d.PackRootfs("python"), func(b []byte) []byte { return make([]byte, len(b)) })
			},
			"not squashfs", func(d paths.Data) string { return d.PackRootfs("python") },
		},
		"image says it is longer": {
			func(t *testing.T, d paths.Data) {
				rewrite(t, d.PackRootfs("python"), func(b []byte) []byte {
					binary.LittleEndian.PutUint64(b[bytesUsedOffset:], 1<<20)
					return b
				})
			},
			"cut short", func(d paths.Data) string { return d.PackRootfs("python") },
		},
		"manifest missing": {
			func(t *testing.T, d paths.Data) { os.Remove(d.PackManifest("python")) },
			"manifest is missing", func(d paths.Data) string { return d.PackManifest("python") },
		},
		"manifest is no JSON": {
			func(t *testing.T, d paths.Data) {
				rewrite(t, d.PackManifest("python"), func(b []byte) []byte { return b[:10] })
			},
			"read manifest", func(d paths.Data) string { return d.PackManifest("python") },
		},
		"manifest of another pack": {
			func(t *testing.T, d paths.Data) {
				rewrite(t, d.PackManifest("python"), func([]byte) []byte {
					raw, _ := json.Marshal(Manifest{Name: "ruby", Interpreter: "ruby"})
					return raw
				})
			},
			`of pack "ruby"`, func(d paths.Data) string { return d.PackManifest("python") },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := data(t)
			tt.spoil(t, d)
			_, err := Load(d)
			if err == nil {
				t.Fatal("Load succeeded")
			}
			for _, want := range []string{tt.want, "python", tt.file(d)} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got error %q, want %q in it", err, want)
				}
			}
		})
	}
}

func TestBootArgs(t *testing.T) {
	tests := map[string]struct {
		pack Pack
		want string
	}{
		"plain": {Pack{Interpreter: "sh"}, "emberd.interpreter=sh"},
		"all": {
			Pack{
				Interpreter: "node", CodeFlag: "-e", FileFlag: "--file",
				Warm: &WarmUp{Kind: Prestart, Argv: []string{"node", "-r", "/warm.js", ""}, Watch: []string{"/a", "/b"}},
			},
			"emberd.interpreter=node emberd.code_flag=-e emberd.file_flag=--file emberd.warm=prestart,node,-r,/warm.js, emberd.watch=/a,/b",
		},
	}
	for name, tt := range tests {
		if got := tt.pack.BootArgs(); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

func TestManifestKeepsTheWarmUp(t *testing.T) {
	data := paths.Data(t.TempDir())
	m := put(t, data, "python")
	m.Warm = &WarmUp{Kind: ForkServer, Argv: []string{"env", "python3"}}
	if err := writeManifest(data.PackManifest("python"), m); err != nil {
		t.Fatal(err)
	}
	r, err := Load(data)
	if err != nil {
		t.Fatal(err)
	}
	if p, _ := r.Get("python"); p.Warm == nil || p.Warm.Kind != ForkServer || !slices.Equal(p.Warm.Argv, m.Warm.Argv) {
		t.Errorf("got %+v", p)
	}
	m.Warm.Argv = []string{"python3 init=/evil"}
	if err := writeManifest(data.PackManifest("python"), m); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(data); err == nil || !strings.Contains(err.Error(), "invalid argument") {
		t.Errorf("got %v, want what is wrong with the manifest", err)
	}
}

func TestLoadNothing(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if _, err := Load(paths.Data(dir)); err == nil || !strings.Contains(err.Error(), "emberctl setup") {
			t.Errorf("got %v, want the way out", err)
		}
	}
}

func TestVerify(t *testing.T) {
	data := paths.Data(t.TempDir())
	put(t, data, "python")
	r, err := Load(data)
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Get("python")
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(p); err != nil {
		t.Errorf("Verify of a whole image: %v", err)
	}
	spoilt := fakeImage(4096)
	spoilt[4095] = 1
	if err := os.WriteFile(p.RootfsPath, spoilt, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(data); err != nil {
		t.Errorf("Load hashes: %v", err)
	}
	if err := Verify(p); err == nil {
		t.Error("Verify accepts an image with one byte changed")
	}
}
