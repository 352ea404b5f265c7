package jail

import (
	"fmt"
	"sync"
)

// users leases user ids from a range; the group id is the same number. An id is
// handed out again only after all the others were, so that whatever a VMM may
// have left behind does not meet a new owner soon.
type users struct {
	mu     sync.Mutex
	first  int
	leased []bool
	next   int
}

func newUsers(first, n int) *users {
	return &users{first: first, leased: make([]bool, n)}
}

func (u *users) lease() (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.leased {
		slot := (u.next + i) % len(u.leased)
		if !u.leased[slot] {
			u.leased[slot] = true
			u.next = slot + 1
			return u.first + slot, nil
		}
	}
	return 0, fmt.Errorf("all %d user ids for VMMs are in use", len(u.leased))
}

func (u *users) release(id int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.leased[id-u.first] = false
}
