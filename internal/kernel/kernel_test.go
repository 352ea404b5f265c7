package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
	"github.com/u-root/u-root/pkg/cpio"
)

// fakeELF stands for a kernel: the extractor looks at no more than its magic.
var fakeELF = append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel"), 1000)...)

// bzImage packs vmlinux the way the kernel's build does.
func bzImage(t testing.TB, vmlinux []byte) []byte {
	t.Helper()
	var body bytes.Buffer
	w := lz4.NewWriter(&body)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(vmlinux); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	packed := binary.LittleEndian.AppendUint32(body.Bytes(), uint32(len(vmlinux)))

	const sects, offset = 3, 0x40
	image := make([]byte, (sects+1)*sectorSize+offset)
	image[offSetupSects] = sects
	copy(image[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[offVersion:], 0x020f)
	binary.LittleEndian.PutUint32(image[offPayload:], offset)
	binary.LittleEndian.PutUint32(image[offPayloadLength:], uint32(len(packed)))
	return append(append(image, packed...), "code after the payload"...)
}

func TestExtractVmlinux(t *testing.T) {
	good := bzImage(t, fakeELF)
	change := func(f func(image []byte) []byte) []byte { return f(slices.Clone(good)) }
	for _, tt := range []struct {
		name  string
		image []byte
		err   string // empty: the ELF comes out
	}{
		{"whole", good, ""},
		{"empty", nil, "setup header not found"},
		{"no magic", change(func(b []byte) []byte { b[offMagic] = 'X'; return b }), "setup header not found"},
		{"old protocol", change(func(b []byte) []byte {
			binary.LittleEndian.PutUint16(b[offVersion:], 0x0207)
			return b
		}), "names no payload"},
		{"cut off", change(func(b []byte) []byte { return b[:len(b)-100] }), "payload ends at byte"},
		{"length beyond 32 bits", change(func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[offPayload:], 0xffffffff)
			binary.LittleEndian.PutUint32(b[offPayloadLength:], 0xffffffff)
			return b
		}), "payload ends at byte"},
		{"no payload", change(func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[offPayloadLength:], 0)
			return b
		}), "too short"},
		{"other compression", change(func(b []byte) []byte { b[4*sectorSize+0x40] = 0x28; return b }), "not LZ4"},
		{"wrong size", change(func(b []byte) []byte {
			end := 4*sectorSize + 0x40 + binary.LittleEndian.Uint32(b[offPayloadLength:])
			b[end-4]--
			return b
		}), "does not unpack to"},
		{"not ELF", bzImage(t, []byte("something else")), "not an ELF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ExtractVmlinux(tt.image)
			switch {
			case tt.err == "" && err != nil:
				t.Fatal(err)
			case tt.err == "" && !bytes.Equal(got, fakeELF):
				t.Fatalf("got %d bytes, want the %d that were packed", len(got), len(fakeELF))
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Fatalf("got error %v, want %q", err, tt.err)
			}
		})
	}
}

// FuzzPayload proves that no header makes the parser look outside the image.
func FuzzPayload(f *testing.F) {
	f.Add([]byte("short"))
	f.Add(make([]byte, headerEnd))
	image := make([]byte, 4096)
	copy(image[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[offVersion:], 0x020f)
	binary.LittleEndian.PutUint32(image[offPayloadLength:], 64)
	f.Add(image)
	f.Fuzz(func(t *testing.T, image []byte) {
		got, err := payload(image)
		if err == nil && len(got) > len(image) {
			t.Fatalf("payload of %d bytes in an image of %d", len(got), len(image))
		}
	})
}

// writeModule makes a module file: an ELF with nothing but a .modinfo section.
func writeModule(t *testing.T, dir, file string, deps ...string) {
	t.Helper()
	modinfo := "license=GPL\x00depends=" + strings.Join(deps, ",") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	var buf bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&buf, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	const headerSize, sectionSize = 64, 64
	data := uint64(headerSize + 3*sectionSize)
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Ehsize: headerSize, Shoff: headerSize, Shentsize: sectionSize, Shnum: 3, Shstrndx: 2,
	})
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: data, Size: uint64(len(modinfo))})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: data + uint64(len(modinfo)), Size: uint64(len(names))})
	buf.WriteString(modinfo + names)
	writeTestFile(t, filepath.Join(dir, file), buf.Bytes())
}

func writeTestFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	writeModule(t, dir, "kernel/virtio.ko")
	writeModule(t, dir, "kernel/virtio_ring.ko")
	writeModule(t, dir, "kernel/block/virtio_blk.ko", "virtio", "virtio_ring")
	writeModule(t, dir, "kernel/char/virtio-rng.ko", "virtio", "virtio_ring")
	writeModule(t, dir, "kernel/loop-a.ko", "loop_b")
	writeModule(t, dir, "kernel/loop_b.ko", "loop-a")
	writeModule(t, dir, "kernel/orphan.ko", "missing")
	writeTestFile(t, filepath.Join(dir, builtinList), []byte("kernel/fs/ext4/ext4.ko\nkernel/net/vsock-core.ko\n"))
	writeTestFile(t, filepath.Join(dir, "kernel/bad.ko"), []byte("not an ELF file"))

	for _, tt := range []struct {
		names []string
		want  []string
		err   string
	}{
		{names: nil, want: nil},
		{names: []string{"virtio_blk"}, want: []string{"kernel/virtio.ko", "kernel/virtio_ring.ko", "kernel/block/virtio_blk.ko"}},
		{names: []string{"virtio_rng", "virtio-rng"}, want: []string{"kernel/virtio.ko", "kernel/virtio_ring.ko", "kernel/char/virtio-rng.ko"}},
		{names: []string{"ext4", "vsock_core", "virtio"}, want: []string{"kernel/virtio.ko"}},
		{names: []string{"loop_a"}, err: "depends on itself"},
		{names: []string{"orphan"}, err: "module missing, needed by orphan"},
		{names: []string{"bad"}, err: "read module"},
	} {
		t.Run(strings.Join(tt.names, ","), func(t *testing.T) {
			ix, err := readIndex(dir)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ix.loadOrder(tt.names)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Fatalf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// kernelPackage lays out a package that has every module emberd asks for.
func kernelPackage(t *testing.T) string {
	t.Helper()
	tree := t.TempDir()
	writeTestFile(t, filepath.Join(tree, "boot", "vmlinuz-6.1.0-test"), bzImage(t, fakeELF))
	modules := filepath.Join(tree, "lib", "modules", "6.1.0-test")
	writeModule(t, modules, "kernel/virtio_ring.ko")
	writeModule(t, modules, "kernel/unwanted.ko")
	for _, name := range append(GuestModules(), MachineModules()...) {
		writeModule(t, modules, "kernel/"+name+".ko", "virtio_ring")
	}
	writeTestFile(t, filepath.Join(modules, builtinList), []byte("kernel/fs/ext4/ext4.ko\n"))
	return tree
}

func TestInstall(t *testing.T) {
	bz := bzImage(t, fakeELF)
	for name, tt := range map[string]struct {
		install func(tree string, to Files) error
		image   []byte
		module  string // one of the wanted
		other   string // one of the other kernel's
	}{
		"guest":   {InstallGuest, fakeELF, "kernel/virtio_mmio.ko", "kernel/kvm_amd.ko"},
		"machine": {InstallMachine, bz, "kernel/kvm_amd.ko", "kernel/virtio_mmio.ko"},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			to := Files{Image: filepath.Join(data, "kernel", "image"), Modules: filepath.Join(data, "kernel", "modules")}
			tree := kernelPackage(t)
			for range 2 { // The second time it replaces what the first one left.
				writeTestFile(t, filepath.Join(to.Modules, "kernel", "stale.ko"), nil)
				if err := tt.install(tree, to); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(to.Image); err != nil || !bytes.Equal(got, tt.image) {
					t.Fatalf("image: %d bytes, %v", len(got), err)
				}
				for file, want := range map[string]bool{
					"kernel/virtio_ring.ko": true, tt.module: true, builtinList: true,
					"kernel/unwanted.ko": false, "kernel/stale.ko": false, tt.other: false,
				} {
					if _, err := os.Stat(filepath.Join(to.Modules, file)); (err == nil) != want {
						t.Errorf("module directory has %s: %v, want %v", file, err == nil, want)
					}
				}
				if entries, _ := os.ReadDir(filepath.Join(data, "kernel")); len(entries) != 2 {
					t.Errorf("install left more than its two results: %v", entries)
				}
			}
		})
	}
}

func TestInstallTwoKernels(t *testing.T) {
	tree := kernelPackage(t)
	writeTestFile(t, filepath.Join(tree, "boot", "vmlinuz-6.1.0-other"), nil)
	dst := t.TempDir()
	err := InstallGuest(tree, Files{Image: dst + "/x", Modules: dst + "/m"})
	if err == nil || !strings.Contains(err.Error(), "want one vmlinuz-*") {
		t.Fatalf("got %v", err)
	}
	if entries, _ := os.ReadDir(dst); len(entries) != 0 {
		t.Fatalf("a refused package left %v", entries)
	}
}

func TestBuildInitramfs(t *testing.T) {
	modules := filepath.Join(kernelPackage(t), "lib", "modules", "6.1.0-test")
	dir := t.TempDir()
	init := filepath.Join(dir, "emberd-init")
	writeTestFile(t, init, []byte("the agent"))
	dst := filepath.Join(dir, "new", "initramfs.cpio")
	build := func() fs.FileInfo {
		t.Helper()
		if err := BuildInitramfs(dst, init, modules, []string{"virtio_blk", "overlay"}); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dst)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}

	first := build()
	got := make(map[string]string)
	archive, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	err = cpio.ForEachRecord(cpio.Newc.Reader(bytes.NewReader(archive)), func(r cpio.Record) error {
		data := make([]byte, r.FileSize)
		if _, err := r.ReadAt(data, 0); err != nil && len(data) > 0 {
			return err
		}
		got[r.Name] = string(data)
		if r.Name == "init" && r.Mode&0o777 != 0o755 {
			t.Errorf("init has mode %o", r.Mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got["init"] != "the agent" || got["modules/order"] != "virtio_ring.ko\nvirtio_blk.ko\noverlay.ko\n" ||
		got["modules/overlay.ko"] == "" || len(got) != 6 {
		t.Errorf("archive holds %q", got)
	}

	if again := build(); !os.SameFile(first, again) {
		t.Error("unchanged inputs wrote the file anew")
	}
	writeTestFile(t, init, []byte("a new agent"))
	if again := build(); os.SameFile(first, again) {
		t.Error("a changed input left the old file")
	}
}
