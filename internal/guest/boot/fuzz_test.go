package boot

import (
	"strings"
	"testing"
)

// What the host puts behind its own options arrives as it was put, and cannot
// pass for anything else.
func FuzzParseCmdline(f *testing.F) {
	f.Add("console=ttyS0 quiet", "python3")
	f.Add("emberd.warm=prestart,sh emberd.code_flag=-c emberd.file_flag=", "sh")
	f.Add("emberd.role=machine emberd.pids=x", "/usr/bin/node")
	f.Add("emberd.interpreter=sh\x00emberd.role=machine\t", "a=b")
	f.Fuzz(func(t *testing.T, options, interpreter string) {
		if len(strings.Fields(interpreter)) != 1 || strings.TrimSpace(interpreter) != interpreter {
			return // The host refuses a pack that names such a thing.
		}
		before := ParseCmdline(options)
		want := before
		want.Interpreter = interpreter
		if got := ParseCmdline(options + " emberd.interpreter=" + interpreter); got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		if strings.ContainsAny(before.Role+before.Interpreter+before.Warm, " \t\n") {
			t.Fatalf("a parameter holds a blank: %+v", before)
		}
	})
}
