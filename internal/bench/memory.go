package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// memory is what a VMM uses, in KiB: what is its own, and its part of what it
// shares with other VMMs of the same template.
type memory struct{ own, shared int }

// memoryOf reads the memory of the process pid. Guest memory that was restored
// is mapped privately from the template's file: a page the guest wrote is
// anonymous, and its own; one that it only read is the file's, which all VMMs of
// the template map.
func memoryOf(pid int) (memory, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return memory{}, err
	}
	defer func() { _ = f.Close() }()
	return parseSmaps(f)
}

// guestMemory is the name of the template's memory file in the root directory of
// a VMM.
const guestMemory = "/mem"

// parseSmaps reads the format of proc_pid_smaps(5).
func parseSmaps(r io.Reader) (memory, error) {
	var m memory
	var inGuest bool
	var pss int
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if !strings.HasSuffix(fields[0], ":") { // the heading of a mapping
			inGuest = len(fields) >= 6 && strings.HasSuffix(fields[5], guestMemory)
			continue
		}
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.Atoi(fields[1])
		if err != nil {
			continue // a field that is no size
		}
		switch fields[0] {
		case "Pss:":
			pss = kib
			if !inGuest {
				m.own += kib
			}
		case "Anonymous:":
			if inGuest {
				m.own += kib
				m.shared += max(pss-kib, 0)
			}
		}
	}
	return m, lines.Err()
}
