package proc

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/x/flatkeyed"
)

// Hit is which limits a program ran into.
type Hit struct {
	// Memory says that the kernel's OOM killer ended a process.
	Memory bool
	// PIDs says that there was one process or thread too many.
	PIDs bool
}

// hit asks the kernel what it counted in the group. Where a control group has no
// such controller, nothing was counted.
func (g group) hit() Hit {
	if g.of == nil {
		return Hit{}
	}
	return Hit{Memory: counted(g.memory, "oom_kill"), PIDs: counted(g.pids, "max")}
}

// counted tells whether a counter in an open file is not zero.
func counted(file *os.File, event string) bool {
	if file == nil {
		return false
	}
	var buf [512]byte
	n, err := unix.Pread(int(file.Fd()), buf[:], 0)
	return err == nil && flatkeyed.Value(buf[:n], event) > 0
}
