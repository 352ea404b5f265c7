package oracle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// takeDaemon counts what the daemon's process holds.
func (s *Snapshot) takeDaemon() error {
	pid := s.cfg.Process
	if pid == 0 {
		return nil
	}
	if pid == os.Getpid() {
		s.counts["goroutines"] = int64(runtime.NumGoroutine())
		debug.FreeOSMemory() // garbage is no growth
	}
	files, err := Files(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for class, n := range files {
		s.counts["descriptors, "+class] = int64(n)
	}
	rss, err := RSS(pid)
	if err != nil {
		return nil //nolint:nilerr // a process that has ended is not alive, which is noted
	}
	s.alive, s.rss = true, rss
	return nil
}

// Files counts the open descriptors of a process by class: "socket", "pipe",
// "anon_inode:[eventpoll]", "device", "file".
func Files(pid int) (map[string]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	classes := map[string]int{}
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue // closed since, as the one of ReadDir itself is
		}
		classes[classOf(target)]++
	}
	return classes, nil
}

func classOf(target string) string {
	switch {
	case strings.HasPrefix(target, "/dev/"):
		return "device"
	case strings.HasPrefix(target, "/"):
		return "file"
	}
	class, _, _ := strings.Cut(target, ":[")
	if class == "anon_inode" {
		return target
	}
	return class
}

// RSS is the resident memory of a process, in bytes.
func RSS(pid int) (int64, error) { return memory(pid, "VmRSS") }

// Anon is what of the resident memory of a process is its own, in bytes: without
// the files that it maps, of which the page cache decides how much is resident.
func Anon(pid int) (int64, error) { return memory(pid, "RssAnon") }

func memory(pid int, kind string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	kib, err := strconv.ParseInt(field(status, kind), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("process %d has no memory: %w", pid, err) // a zombie
	}
	return kib << 10, nil
}
