package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/emberd/emberd/internal/x/lockfile"
)

// IDRange is a range of user ids; each VMM's group id is the same number.
type IDRange struct{ First, Count int }

// DefaultUsers is clear of the ids that distributions hand out, to people, to
// services and to containers.
var DefaultUsers = IDRange{First: 0x656d0000, Count: 0x10000}

// The ids that a range must keep clear of: those of the system, the user nobody,
// and what 16 and 32 bits hold for "no id".
const (
	firstFree = 1000
	nobody    = 65534
	noID16    = 65535
	lastID    = 1<<32 - 2
)

// MarshalText returns the range as "FIRST-LAST".
func (r IDRange) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d-%d", r.First, r.First+r.Count-1), nil
}

// UnmarshalText takes what [IDRange.MarshalText] returns, unless it holds an id
// that no VMM may have.
func (r *IDRange) UnmarshalText(text []byte) error {
	from, to, ok := strings.Cut(string(text), "-")
	first, err := strconv.ParseUint(from, 10, 32)
	last, err2 := strconv.ParseUint(to, 10, 32)
	if !ok || err != nil || err2 != nil {
		return fmt.Errorf("user ids %q: want FIRST-LAST", text)
	}
	n := IDRange{First: int(first), Count: int(last) - int(first) + 1}
	if err := n.check(); err != nil {
		return err
	}
	*r = n
	return nil
}

func (r IDRange) check() error {
	switch last := r.First + r.Count - 1; {
	case r.Count < 1:
		return fmt.Errorf("user ids %d-%d: the range is empty", r.First, last)
	case r.First < firstFree || last > lastID:
		return fmt.Errorf("user ids %d-%d: VMMs take ids from %d to %d", r.First, last, firstFree, lastID)
	case r.has(nobody) || r.has(noID16):
		return fmt.Errorf("user ids %d-%d: %d and %d are nobody's", r.First, last, nobody, noID16)
	}
	return nil
}

func (r IDRange) has(id int) bool { return id >= r.First && id-r.First < r.Count }

// blockSize is how many ids are locked with one file.
const blockSize = 1024

// block is the part of the range in the n-th block of all ids there are.
// Blocks do not depend on the range, so daemons whose ranges overlap contend
// for the same locks.
func (r IDRange) block(n int) IDRange {
	first := max(r.First, n*blockSize)
	return IDRange{First: first, Count: min(r.First+r.Count, (n+1)*blockSize) - first}
}

// users leases user ids. An id has one owner on the host at a time: the block
// it is from is locked against other daemons, ids that something lives under
// when the block is locked are left alone, and one that is given back queues
// behind all the others.
type users struct {
	ids   IDRange
	locks string // the directory of the lock files
	jails string // where VMMs may have left files

	mu     sync.Mutex
	free   []int
	next   int // the block to try next
	taken  []IDRange
	unlock []func() error
}

// openUsers locks the first block of ids that no other daemon has.
func openUsers(ids IDRange, locks, jails string) (*users, error) {
	if err := ids.check(); err != nil {
		return nil, err
	}
	u := &users{ids: ids, locks: locks, jails: jails, next: ids.First / blockSize}
	if err := u.takeBlock(); err != nil {
		return nil, errors.Join(err, u.close())
	}
	return u, nil
}

func (u *users) close() error {
	var errs []error
	for _, unlock := range u.unlock {
		errs = append(errs, unlock())
	}
	return errors.Join(errs...)
}

func (u *users) lease() (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.free) == 0 {
		// The lock is held for the reading of /proc, once in a thousand leases.
		if err := u.takeBlock(); err != nil {
			return 0, err
		}
	}
	id := u.free[0]
	u.free = u.free[1:]
	return id, nil
}

// release gives an id back. One that an earlier daemon has leased may be from a
// block that is another daemon's by now, which leaves it alone.
func (u *users) release(id int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if slices.ContainsFunc(u.taken, func(r IDRange) bool { return r.has(id) }) {
		u.free = append(u.free, id)
	}
}

// takeBlock locks the next block that has an id to hand out.
func (u *users) takeBlock() error {
	for ; u.next*blockSize < u.ids.First+u.ids.Count; u.next++ {
		unlock, err := lockfile.Take(filepath.Join(u.locks, strconv.Itoa(u.next*blockSize)))
		if errors.Is(err, lockfile.ErrHeld) {
			continue
		}
		if err != nil {
			return fmt.Errorf("user ids: %w", err)
		}
		u.unlock = append(u.unlock, unlock)
		block := u.ids.block(u.next)
		u.taken = append(u.taken, block)
		used, err := inUse(block, u.jails)
		if err != nil {
			return fmt.Errorf("user ids: %w", err)
		}
		for id := block.First; block.has(id); id++ {
			if !used[id] {
				u.free = append(u.free, id)
			}
		}
		if len(u.free) > 0 {
			u.next++
			return nil
		}
	}
	return fmt.Errorf("all %d user ids for VMMs are in use", u.ids.Count)
}

// inUse returns the ids of the range under which a process runs on this host or
// that own something below dir.
func inUse(ids IDRange, dir string) (map[int]bool, error) {
	used := make(map[int]bool)
	note := func(id int) {
		if ids.has(id) {
			used[id] = true
		}
	}
	statuses, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return nil, err
	}
	for _, path := range statuses {
		status, err := readStatus(path)
		if processGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, field := range append(status["Uid"], status["Gid"]...) {
			if id, err := strconv.Atoi(field); err == nil {
				note(id)
			}
		}
	}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			note(int(st.Uid))
			note(int(st.Gid))
		}
		return nil
	})
	return used, err
}

// processGone reports whether err is what reading of a process that has ended
// returns.
func processGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
