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
	// mem is the VMM's address space, and pagemap tells of each page of it.
	mem, pagemap *os.File
	// file is what it has mapped.
	file     *os.File
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
	if m.pagemap, err = m.proc.Open("pagemap"); err != nil {
		return nil, err
	}
	if m.file, err = os.Open(snapshot); err != nil {
		return nil, err
	}
	if m.mappings, err = m.find(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *memory) close() error {
	err := m.proc.Close()
	for _, f := range []*os.File{m.mem, m.pagemap, m.file} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// find returns where the file is mapped. The VMM sees it by another path, in a
// mount namespace of its own, so it is told by name and inode.
func (m *memory) find() ([]mapping, error) {
	info, err := m.file.Stat()
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
		if n == 7 && inode == st.Ino && path.Base(name) == path.Base(m.file.Name()) {
			found = append(found, mapping{from, offset, to - from})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("the VMM has not mapped %s", m.file.Name())
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
	var pages Pages
	for _, part := range m.mappings {
		own, err := m.own(part.address, part.length)
		if err != nil {
			return nil, fmt.Errorf("guest memory: %w", err)
		}
		for i, own := range own {
			if own {
				pages = pages.add(part.offset/pageSize + int64(i))
			}
		}
	}
	return pages, nil
}

// own tells of each page in a part of the VMM's address space whether it is the
// VMM's own.
func (m *memory) own(address, length int64) ([]bool, error) {
	entries := make([]byte, length/pageSize*8)
	if _, err := m.pagemap.ReadAt(entries, address/pageSize*8); err != nil {
		return nil, err
	}
	own := make([]bool, length/pageSize)
	for i := range own {
		entry := binary.NativeEndian.Uint64(entries[i*8:])
		own[i] = entry&pagePresent != 0 && entry&pageOfFile == 0
	}
	return own, nil
}

// maxCopy is how many bytes are copied at a time.
const maxCopy = 64 * pageSize

// copyAhead makes the VMM's own copy of pages, by writing to them what the file
// holds, unless they are its own already: then something else may be in them. The
// guest has to stand still. One at a time, by faults of the guest, it takes several
// times as long.
func (m *memory) copyAhead(pages Pages) error {
	buf := make([]byte, maxCopy)
	for _, run := range pages {
		for off, end := run[0]*pageSize, (run[0]+run[1])*pageSize; off < end; {
			address, there := m.locate(off)
			if there == 0 {
				return fmt.Errorf("guest memory: the VMM has not mapped the offset %d", off)
			}
			n, err := m.copyRun(buf[:min(end-off, there, maxCopy)], off, address)
			if err != nil {
				return fmt.Errorf("guest memory: %w", err)
			}
			off += n
		}
	}
	return nil
}

// copyRun copies the pages at the offset off as far as they are alike and buf has
// room for them, and returns how many bytes that were.
func (m *memory) copyRun(buf []byte, off, address int64) (int64, error) {
	own, err := m.own(address, int64(len(buf)))
	if err != nil {
		return 0, err
	}
	alike := 1
	for alike < len(own) && own[alike] == own[0] {
		alike++
	}
	buf = buf[:alike*pageSize]
	if own[0] {
		return int64(len(buf)), nil
	}
	if _, err := m.file.ReadAt(buf, off); err != nil {
		return 0, err
	}
	n, err := m.mem.WriteAt(buf, address)
	return int64(n), err
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
