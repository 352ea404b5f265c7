package proc

import (
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
	return Hit{
		Memory: g.counted("memory.events", "oom_kill"),
		PIDs:   g.counted("pids.events", "max"),
	}
}

// counted tells whether a counter of the group is not zero. It is three system
// calls, as every program waits for them.
func (g group) counted(file, event string) bool {
	fd, err := unix.Openat(int(g.dir.Fd()), file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	var buf [512]byte
	n, err := unix.Read(fd, buf[:])
	return err == nil && flatkeyed.Value(buf[:n], event) > 0
}
