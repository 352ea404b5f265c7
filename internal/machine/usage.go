package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// usage is how much processor time the threads of a process got, and how long
// they were ready to run and had to wait for some.
type usage struct {
	ran, waited time.Duration
}

// usageOf reads the scheduler's account of the process pid. What cannot be read
// counts as nothing: a thread may end at any time.
func usageOf(pid int) usage {
	var u usage
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var ran, waited int64 // nanoseconds, Documentation/scheduler/sched-stats.rst
		if _, err := fmt.Sscan(string(stat), &ran, &waited); err == nil {
			u.ran += time.Duration(ran)
			u.waited += time.Duration(waited)
		}
	}
	return u
}

// since says what the process did since before, which tells an emulation that
// hangs from a host that had no time for it.
func (u usage) since(before usage) string {
	return fmt.Sprintf("in that time QEMU ran for %v and waited for a processor for %v",
		(u.ran - before.ran).Round(100*time.Millisecond), (u.waited - before.waited).Round(100*time.Millisecond))
}
