package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"
)

// program is an ELF program with one segment, which says it has size bytes in
// the file.
func program(size uint64) []byte {
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 120, Filesz: size, Memsz: size},
		[8]byte{},
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // a Buffer takes everything
	}
	return b.Bytes()
}

// A kernel that is taken has all of what is going to be loaded.
func FuzzCheckELF(f *testing.F) {
	f.Add(program(8))
	f.Add(program(9))
	f.Add(program(1<<64 - 1))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, image []byte) {
		if checkELF(bytes.NewReader(image), int64(len(image))) != nil {
			return
		}
		// Where the headers are, from the file itself.
		start, count := binary.LittleEndian.Uint64(image[32:]), int(binary.LittleEndian.Uint16(image[56:]))
		loads := 0
		for i := range count {
			header := image[start+uint64(i)*56:]
			if binary.LittleEndian.Uint32(header) != uint32(elf.PT_LOAD) {
				continue
			}
			loads++
			off, size := binary.LittleEndian.Uint64(header[8:]), binary.LittleEndian.Uint64(header[32:])
			if off > uint64(len(image)) || size > uint64(len(image))-off {
				t.Fatalf("a segment of %d bytes at %d of %d is taken", size, off, len(image))
			}
		}
		if loads == 0 {
			t.Fatal("a program without segments is taken")
		}
	})
}

// What comes out of a bzImage is an ELF file of the size that it claims, and
// bounded by it whatever the payload unpacks to.
func FuzzExtractVmlinux(f *testing.F) {
	whole := func(b []byte) []byte { return b }
	for _, change := range []func([]byte) []byte{
		whole,
		func(b []byte) []byte { return b[:len(b)-30] },
		func(b []byte) []byte { b[4*sectorSize+0x40] = 0x28; return b },
		func(b []byte) []byte { b[offSetupSects] = 0; return b },
	} {
		f.Add(change(bzImage(f, fakeELF)))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		got, err := ExtractVmlinux(image)
		if err != nil {
			return
		}
		packed, err := payload(image)
		if err != nil {
			t.Fatal(err)
		}
		if claimed := binary.LittleEndian.Uint32(packed[len(packed)-4:]); len(got) != int(claimed) || !bytes.HasPrefix(got, []byte("\x7fELF")) {
			t.Fatalf("%d bytes came out of a payload that claims %d", len(got), claimed)
		}
	})
}
