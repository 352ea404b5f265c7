package process

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Waited is how long the threads that the process has now have been ready to run
// and had no CPU, all together: zero if the kernel does not tell
// (Documentation/scheduler/sched-stats.rst, the second number). One that is stopped
// or sleeps does not wait.
func Waited(pid int) (total time.Duration) {
	tasks := fmt.Sprintf("/proc/%d/task", pid)
	entries, _ := os.ReadDir(tasks)
	for _, e := range entries {
		stat, _ := os.ReadFile(tasks + "/" + e.Name() + "/schedstat")
		fields := bytes.Fields(stat)
		if len(fields) < 2 {
			continue
		}
		if ns, err := strconv.ParseInt(string(fields[1]), 10, 64); err == nil {
			total += time.Duration(ns)
		}
	}
	return total
}
