package daemon

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"maps"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/pack"
)

// spoils are what may be in the place of a file that emberd needs. Each is done
// to the path of a sound one.
var spoils = map[string]func(t *testing.T, path string){
	"missing":   func(t *testing.T, path string) { remove(t, path) },
	"empty":     func(t *testing.T, path string) { put(t, path, nil) },
	"one byte":  func(t *testing.T, path string) { put(t, path, []byte{0}) },
	"zeros":     func(t *testing.T, path string) { put(t, path, make([]byte, 4096)) },
	"text":      func(t *testing.T, path string) { put(t, path, []byte(strings.Repeat("not this\n", 500))) },
	"directory": func(t *testing.T, path string) { remove(t, path); check(t, os.Mkdir(path, 0o700)) },
	"FIFO":      func(t *testing.T, path string) { remove(t, path); check(t, unix.Mkfifo(path, 0o600)) },
	"socket": func(t *testing.T, path string) {
		remove(t, path)
		l, err := net.Listen("unix", path)
		check(t, err)
		t.Cleanup(func() { _ = l.Close() })
	},
	"link to itself as it was": func(t *testing.T, path string) {
		check(t, os.Rename(path, path+".moved"))
		check(t, os.Symlink(path+".moved", path))
	},
	"link to a device":  func(t *testing.T, path string) { remove(t, path); check(t, os.Symlink("/dev/zero", path)) },
	"link to nothing":   func(t *testing.T, path string) { remove(t, path); check(t, os.Symlink("/nonexistent", path)) },
	"link to itself":    func(t *testing.T, path string) { remove(t, path); check(t, os.Symlink(path, path)) },
	"character device":  func(t *testing.T, path string) { device(t, path, unix.S_IFCHR, 1, 5) },
	"block device":      func(t *testing.T, path string) { device(t, path, unix.S_IFBLK, 7, 0) },
	"endless by a hole": func(t *testing.T, path string) { check(t, os.Truncate(path, 1<<40)) },
	"half": func(t *testing.T, path string) {
		info, err := os.Stat(path)
		check(t, err)
		check(t, os.Truncate(path, info.Size()/2))
	},
}

// changes are flaws of content, by the artefact that has them.
var changes = map[string]map[string]func([]byte) []byte{
	"rootfs": {
		"other magic":      at(0, []byte("qcow")),
		"qcow2 header":     at(0, []byte("QFI\xfb\x00\x00\x00\x03")),
		"longer than file": at(40, binary.LittleEndian.AppendUint64(nil, 4097)),
		"2^64 bytes":       at(40, bytes.Repeat([]byte{0xff}, 8)),
	},
	"kernel": {
		"32 bits":             at(4, []byte{1}),
		"big endian":          at(5, []byte{2}),
		"another machine":     at(18, []byte{0xb7, 0}),
		"a library":           at(16, []byte{3, 0}),
		"no segments":         at(56, []byte{0, 0}),
		"65,535 segments":     at(56, []byte{0xff, 0xff}),
		"segment past end":    at(64+32, binary.LittleEndian.AppendUint64(nil, 1<<30)),
		"segment wraps":       at(64+8, bytes.Repeat([]byte{0xff}, 8), binary.LittleEndian.AppendUint64(nil, 1)),
		"headers elsewhere":   at(32, bytes.Repeat([]byte{0xff}, 8)),
		"bzImage, not an ELF": at(0, []byte("MZ\xea\x07")),
	},
	"manifest": {
		"not JSON":         func([]byte) []byte { return []byte("{") },
		"a list":           func([]byte) []byte { return []byte("[]") },
		"100,000 deep":     func([]byte) []byte { return []byte(strings.Repeat(`{"contents":[`, 100_000)) },
		"2 MiB":            func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 2<<20)...) },
		"negative size":    manifest(func(m *pack.Manifest) { m.Size = -1 }),
		"huge size":        manifest(func(m *pack.Manifest) { m.Size = 1<<63 - 1 }),
		"no interpreter":   manifest(func(m *pack.Manifest) { m.Interpreter = "" }),
		"another pack":     manifest(func(m *pack.Manifest) { m.Name = "../python" }),
		"kernel arguments": manifest(func(m *pack.Manifest) { m.Interpreter = "/bin/sh init=/bin/sh" }),
		"line break":       manifest(func(m *pack.Manifest) { m.Interpreter = "/bin/sh\ninit=/bin/sh" }),
	},
}

// Whatever is in the place of an image, a manifest or a kernel, the daemon says
// which file it is and does not start; it opens no device and waits for nothing.
func TestMalformedArtefactsAreRefused(t *testing.T) {
	for _, artefact := range []string{"rootfs", "manifest", "kernel"} {
		flaws := map[string]func(t *testing.T, path string){}
		maps.Copy(flaws, spoils)
		for name, change := range changes[artefact] {
			flaws[name] = func(t *testing.T, path string) {
				b, err := os.ReadFile(path)
				check(t, err)
				put(t, path, change(b))
			}
		}
		for name, spoil := range flaws {
			t.Run(artefact+"/"+name, func(t *testing.T) {
				cfg := fakeConfig(t)
				path := map[string]string{
					"rootfs":   cfg.DataDir.PackRootfs("shell"),
					"manifest": cfg.DataDir.PackManifest("shell"),
					"kernel":   cfg.DataDir.Vmlinux(),
				}[artefact]
				spoil(t, path)
				refused := make(chan error, 1)
				go func() {
					d, err := New(t.Context(), cfg)
					if err == nil {
						_ = d.Close(t.Context())
					}
					refused <- err
				}()
				select {
				case err := <-refused:
					if err == nil || !strings.Contains(err.Error(), path) && !strings.Contains(err.Error(), "pack shell") {
						t.Errorf("got %v, want an error about %s", err, path)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("it waits")
				}
			})
		}
	}
}

// at replaces what is at an offset by each of parts, one after the other.
func at(offset int, parts ...[]byte) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[offset:], bytes.Join(parts, nil))
		return b
	}
}

func manifest(change func(*pack.Manifest)) func([]byte) []byte {
	return func(b []byte) []byte {
		var m pack.Manifest
		if err := json.Unmarshal(b, &m); err != nil {
			panic(err)
		}
		change(&m)
		b, err := json.Marshal(m)
		if err != nil {
			panic(err)
		}
		return b
	}
}

func put(t *testing.T, path string, content []byte) {
	t.Helper()
	check(t, os.WriteFile(path, content, 0o600))
}

// device makes a device node, which only root can.
func device(t *testing.T, path string, kind uint32, major, minor uint32) {
	t.Helper()
	remove(t, path)
	if err := unix.Mknod(path, kind|0o600, int(unix.Mkdev(major, minor))); err != nil {
		t.Skipf("make a device: %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
