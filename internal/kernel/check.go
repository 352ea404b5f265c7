package kernel

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"

	"github.com/emberd/emberd/internal/x/regular"
)

// CheckVmlinux returns an error if path is no kernel that Firecracker could
// boot: a regular file that is an ELF program for this architecture, with every
// segment that it says it has.
func CheckVmlinux(path string) error {
	f, err := regular.Open(path)
	if err != nil {
		return fmt.Errorf("guest kernel: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("guest kernel: %w", err)
	}
	if info.Size() > maxVmlinux {
		return fmt.Errorf("guest kernel %s has %d bytes, more than %d", path, info.Size(), maxVmlinux)
	}
	if err := checkELF(f, info.Size()); err != nil {
		return fmt.Errorf("guest kernel %s: %w", path, err)
	}
	return nil
}

// checkELF judges the program in f, which has size bytes. Sections are not
// looked at: Firecracker loads segments.
func checkELF(f io.ReaderAt, size int64) error {
	program, err := elf.NewFile(io.NewSectionReader(f, 0, size))
	if err != nil {
		return err
	}
	if program.Class != elf.ELFCLASS64 || program.Machine != elf.EM_X86_64 || program.Type != elf.ET_EXEC {
		return fmt.Errorf("%v %v %v is not an uncompressed x86-64 kernel", program.Class, program.Machine, program.Type)
	}
	loads := 0
	for _, p := range program.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		loads++
		if end := p.Off + p.Filesz; end < p.Off || end > uint64(size) {
			return fmt.Errorf("cut short: %d bytes of %d", size, end)
		}
	}
	if loads == 0 {
		return errors.New("it has nothing to load")
	}
	return nil
}
