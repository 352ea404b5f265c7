package fctest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
)

// Data makes a data directory that passes a daemon's checks and holds nothing
// that could boot: a kernel without modules, and the packs python and shell.
func Data(tb testing.TB, dir string) paths.Data {
	tb.Helper()
	data := paths.Data(dir)
	write := func(path string, content []byte) {
		tb.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	write(data.Vmlinux(), Vmlinux())
	write(filepath.Join(data.GuestModules(), "modules.builtin"), []byte(strings.Join(kernel.GuestModules(), ".ko\n")+".ko\n"))
	for name, interpreter := range map[string]string{"python": "python3", "shell": "/bin/sh"} {
		image := make([]byte, 4096)
		copy(image, "hsqs")
		binary.LittleEndian.PutUint64(image[40:], uint64(len(image)))
		manifest, err := json.Marshal(pack.Manifest{Name: name, Interpreter: interpreter, Size: int64(len(image))})
		if err != nil {
			tb.Fatal(err)
		}
		write(data.PackRootfs(name), image)
		write(data.PackManifest(name), manifest)
	}
	return data
}

// Vmlinux is the smallest program that passes for a kernel: an ELF header and
// one empty segment.
func Vmlinux() []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:    uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64),
		Version: uint32(elf.EV_CURRENT),
		Phoff:   64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	})
	_ = binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD)})
	return b.Bytes()
}
