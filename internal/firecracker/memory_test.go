package firecracker

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// mapped is a file of n pages, page i full of byte i+1, and what this process has
// mapped it to, as a VMM does.
func mapped(t *testing.T, n int) (path string, mem []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), memoryFile)
	var content []byte
	for i := range n {
		content = append(content, bytes.Repeat([]byte{byte(i + 1)}, pageSize)...)
	}
	if err := os.WriteFile(path, content, 0o400); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err = unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return path, mem
}

func openMapped(t *testing.T, path string) *memory {
	t.Helper()
	m, err := openMemory(os.Getpid(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestWrittenPagesAreKnownAndCopied(t *testing.T) {
	path, mem := mapped(t, 200)
	m := openMapped(t, path)
	expect := func(want Pages) {
		t.Helper()
		got, err := m.written()
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("written: %v, %v; want %v", got, err, want)
		}
	}
	expect(nil)
	_ = mem[7*pageSize] // to read is not to write
	expect(nil)
	mem[3*pageSize], mem[4*pageSize+1], mem[199*pageSize] = 'a', 'b', 'c'
	expect(Pages{{3, 2}, {199, 1}})

	// What was written to is not lost, and the rest holds what the file does.
	if err := m.copyAhead(Pages{{2, 100}, {198, 2}}); err != nil {
		t.Fatal(err)
	}
	expect(Pages{{2, 100}, {198, 2}})
	for i := range 200 {
		want := bytes.Repeat([]byte{byte(i + 1)}, pageSize)
		switch i {
		case 3:
			want[0] = 'a'
		case 4:
			want[1] = 'b'
		case 199:
			want[0] = 'c'
		}
		if !bytes.Equal(mem[i*pageSize:(i+1)*pageSize], want) {
			t.Errorf("page %d has changed", i)
		}
	}
	if err := m.copyAhead(Pages{{199, 2}}); err == nil {
		t.Error("a page behind the end was copied")
	}
}

func TestMemoryOfAStranger(t *testing.T) {
	path, _ := mapped(t, 1)
	other := filepath.Join(t.TempDir(), memoryFile)
	if err := os.WriteFile(other, make([]byte, pageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := openMemory(os.Getpid(), other); err == nil {
		t.Errorf("a file that is not mapped was found: %v", m.mappings)
	}
	renamed := path + "2" // same inode, another name
	if err := os.Link(path, renamed); err != nil {
		t.Fatal(err)
	}
	if _, err := openMemory(os.Getpid(), renamed); err == nil {
		t.Error("a file of another name was found")
	}
	if _, err := openMemory(1<<22+1, path); err == nil {
		t.Error("a process that cannot be was found")
	}
}

func TestPages(t *testing.T) {
	const size = 10 * pageSize
	for _, tt := range []struct {
		name  string
		pages Pages
		ok    bool
	}{
		{"none", nil, true},
		{"all", Pages{{0, 10}}, true},
		{"runs", Pages{{0, 1}, {2, 3}, {5, 5}}, true},
		{"behind the end", Pages{{10, 1}}, false},
		{"over the end", Pages{{9, 2}}, false},
		{"far over the end", Pages{{1, 1<<63 - 1}}, false},
		{"empty run", Pages{{3, 0}}, false},
		{"negative", Pages{{-1, 1}}, false},
		{"negative length", Pages{{3, -1}}, false},
		{"overlap", Pages{{0, 3}, {2, 1}}, false},
		{"out of order", Pages{{5, 1}, {0, 1}}, false},
	} {
		if err := tt.pages.Check(size); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	var p Pages
	for _, page := range []int64{1, 2, 3, 7, 9, 10} {
		p = p.add(page)
	}
	if !slices.Equal(p, Pages{{1, 3}, {7, 1}, {9, 2}}) || p.Count() != 6 {
		t.Errorf("%v, %d pages", p, p.Count())
	}
}
