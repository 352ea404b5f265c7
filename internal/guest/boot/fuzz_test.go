package boot

import (
	"fmt"
	"strings"
	"testing"
)

// What the host puts behind its own options arrives as it was put, and cannot
// pass for anything else.
func FuzzParseCmdline(f *testing.F) {
	f.Add("console=ttyS0 quiet", "python3", 128, 512)
	f.Add("emberd.warm=prestart,sh emberd.code_flag=-c emberd.file_flag= emberd.disk_mib=-1", "sh", 1, 1)
	f.Add("emberd.role=machine emberd.pids=x", "/usr/bin/node", -1, 0)
	f.Add("emberd.interpreter=sh\x00emberd.disk_mib=9\t", "a=b", 0, 0)
	f.Fuzz(func(t *testing.T, options, interpreter string, disk, pids int) {
		if len(strings.Fields(interpreter)) != 1 || strings.TrimSpace(interpreter) != interpreter {
			return // The host refuses a pack that names such a thing.
		}
		before, beforeErr := ParseCmdline(options)
		got, err := ParseCmdline(fmt.Sprintf("%s emberd.interpreter=%s emberd.disk_mib=%d emberd.pids=%d", options, interpreter, disk, pids))
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		want := before
		want.Interpreter, want.DiskMiB, want.PIDs = interpreter, disk, pids
		if got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		if beforeErr == nil && strings.ContainsAny(before.Role+before.Interpreter+before.Warm, " \t\n") {
			t.Fatalf("a parameter holds a blank: %+v", before)
		}
	})
}
