package firecracker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"syscall"
)

// pageSize is the unit in which a guest's memory is shared and copied.
const pageSize = 4096

// Pages are pages of a guest's memory, by number: runs of a first one and how
// many, in order, without overlap.
type Pages [][2]int64

// Count is how many pages there are.
func (p Pages) Count() (n int64) {
	for _, run := range p {
		n += run[1]
	}
	return n
}

// add appends a page that is behind all others.
func (p Pages) add(page int64) Pages {
	if last := len(p) - 1; last >= 0 && p[last][0]+p[last][1] == page {
		p[last][1]++
		return p
	}
	return append(p, [2]int64{page, 1})
}

// Check returns an error unless these are pages of a memory of that many bytes.
func (p Pages) Check(size int64) error {
	next := int64(0)
	for _, run := range p {
		if run[0] < next || run[1] < 1 || run[1] > size/pageSize-run[0] {
			return fmt.Errorf("pages %d, %d of them: no such run behind page %d in %d bytes", run[0], run[1], next, size)
		}
		next = run[0] + run[1]
	}
	return nil
}

// memory is the memory of a guest that was restored, as its VMM has mapped it: the
// file of the snapshot, privately.
type memory struct {
	// proc is /proc/PID. It stands for that process even if another one gets its
	// number.
	proc *os.Root
	// mem is the VMM's address space.
	mem      *os.File
	mappings []mapping
}

// mapping is a part of the file in the VMM's address space.
type mapping struct{ address, offset, length int64 }

// openMemory opens the guest memory of the VMM pid. snapshot is the memory file.
// The caller closes it.
func openMemory(pid int, snapshot string) (_ *memory, err error) {
	m := &memory{}
	if m.proc, err = os.OpenRoot(fmt.Sprintf("/proc/%d", pid)); err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("guest memory: %w", err), m.close())
		}
	}()
	if m.mem, err = m.proc.OpenFile("mem", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if m.mappings, err = m.find(snapshot); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *memory) close() error {
	err := m.proc.Close()
	if m.mem != nil {
		err = errors.Join(err, m.mem.Close())
	}
	return err
}

// find returns where the file is mapped. The VMM sees it by another path, in a
// mount namespace of its own, so it is told by name and inode.
func (m *memory) find(file string) ([]mapping, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	maps, err := m.proc.Open("maps")
	if err != nil {
		return nil, err
	}
	defer maps.Close() //nolint:errcheck // it was only read
	var found []mapping
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var (
			from, to, offset int64
			inode            uint64
			perms, dev, name string
		)
		// proc_pid_maps(5); a mapping without a file has no name.
		n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %d %s", &from, &to, &perms, &offset, &dev, &inode, &name)
		if n == 7 && inode == st.Ino && path.Base(name) == path.Base(file) {
			found = append(found, mapping{from, offset, to - from})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("the VMM has not mapped %s", file)
	}
	return found, nil
}

// Entries of /proc/PID/pagemap: a page that is there, and is the file's and not the
// process's own (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent = 1 << 63
	pageOfFile  = 1 << 61
)

// written returns the pages that are the VMM's own: those that were written to
// since it has mapped the file.
func (m *memory) written() (Pages, error) {
	pagemap, err := m.proc.Open("pagemap")
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	defer pagemap.Close() //nolint:errcheck // it was only read
	var pages Pages
	for _, part := range m.mappings {
		entries := make([]byte, part.length/pageSize*8)
		if _, err := pagemap.ReadAt(entries, part.address/pageSize*8); err != nil {
			return nil, fmt.Errorf("guest memory: %w", err)
		}
		for i := range part.length / pageSize {
			entry := binary.NativeEndian.Uint64(entries[i*8:])
			if entry&pagePresent != 0 && entry&pageOfFile == 0 {
				pages = pages.add(part.offset/pageSize + i)
			}
		}
	}
	return pages, nil
}

// maxCopy is how many bytes are copied at a time.
const maxCopy = 64 * pageSize

// copyAhead makes the VMM's own copy of pages, by writing what they hold: some may
// be its own already, with something else in them than in the file. The guest has
// to stand still. One at a time, by faults of the guest, it takes several times as
// long.
func (m *memory) copyAhead(pages Pages) error {
	buf := make([]byte, maxCopy)
	for _, run := range pages {
		for off, end := run[0]*pageSize, (run[0]+run[1])*pageSize; off < end; {
			address, there := m.locate(off)
			if there == 0 {
				return fmt.Errorf("guest memory: the VMM has not mapped the offset %d", off)
			}
			chunk := buf[:min(end-off, there, maxCopy)]
			if _, err := m.mem.ReadAt(chunk, address); err != nil {
				return fmt.Errorf("guest memory: %w", err)
			}
			if _, err := m.mem.WriteAt(chunk, address); err != nil {
				return fmt.Errorf("guest memory: %w", err)
			}
			off += int64(len(chunk))
		}
	}
	return nil
}

// locate returns where the VMM has what is at that offset of the file, and how much
// of it.
func (m *memory) locate(off int64) (address, length int64) {
	for _, part := range m.mappings {
		if at := off - part.offset; at >= 0 && at < part.length {
			return part.address + at, part.length - at
		}
	}
	return 0, 0
}
