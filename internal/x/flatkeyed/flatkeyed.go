// Package flatkeyed reads the files of control groups that count: one line for each
// counter, "NAME VALUE" (Documentation/admin-guide/cgroup-v2.rst, "flat keyed").
package flatkeyed

import (
	"bytes"
	"strconv"
)

// Value is the counter called name in the content of such a file, 0 if it has none.
func Value(content []byte, name string) uint64 {
	for line := range bytes.Lines(content) {
		if key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" ")); ok && string(key) == name {
			n, _ := strconv.ParseUint(string(value), 10, 64) // the kernel's own
			return n
		}
	}
	return 0
}
