package jail

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// thread is what /proc says of a thread that is confined.
func thread() map[string]string {
	return map[string]string{
		"Seccomp": "2", "NoNewPrivs": "1", "Groups": " ",
		"Uid": "5000\t5000\t5000\t5000", "Gid": "5000\t5000\t5000\t5000",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000",
		"CapEff": "0000000000000000", "CapAmb": "0000000000000000",
	}
}

func writeThread(t *testing.T, proc, id string, flags uint64, status map[string]string) {
	t.Helper()
	dir := filepath.Join(proc, "task", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for name, value := range status {
		fmt.Fprintf(&b, "%s:\t%s\n", name, value)
	}
	// A thread chooses its name, and this one would be a kernel thread.
	stat := fmt.Sprintf("%s (x) S 1 1 1 0 -1 2097152 () S 1 1 1 0 -1 %d 0 0\n", id, flags)
	for name, content := range map[string]string{"status": b.String(), "stat": stat} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEveryThreadHasToBeConfined(t *testing.T) {
	for _, tt := range []struct{ name, value, err string }{
		{name: "Seccomp", value: "2"},
		{name: "Seccomp", value: "0", err: "Seccomp"},
		{name: "Seccomp", value: "1", err: "Seccomp"},
		{name: "Seccomp", value: "", err: "Seccomp"},
		{name: "NoNewPrivs", value: "0", err: "NoNewPrivs"},
		{name: "Uid", value: "5000\t0\t5000\t5000", err: "Uid"},
		{name: "Uid", value: "5001\t5001\t5001\t5001", err: "Uid"},
		{name: "Gid", value: "0\t0\t0\t0", err: "Gid"},
		{name: "Groups", value: "0 ", err: "Groups"},
		{name: "CapInh", value: "0000000000000001", err: "CapInh"},
		{name: "CapPrm", value: "000001ffffffffff", err: "CapPrm"},
		{name: "CapEff", value: "0000000000200000", err: "CapEff"},
		{name: "CapAmb", value: "0000000000000001", err: "CapAmb"},
	} {
		proc := t.TempDir()
		bad := thread()
		bad[tt.name] = tt.value
		writeThread(t, proc, "100", 0x400100, thread())
		writeThread(t, proc, "101", 0x400040, bad)
		err := checkThreads(proc, 5000)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), "thread 101 of VMM: "+tt.err+" is") {
			t.Errorf("%s %q: %v", tt.name, tt.value, err)
		}
	}
}

func TestThreadsOfTheKernelAreNotTheVMMs(t *testing.T) {
	proc := t.TempDir()
	unfiltered := thread()
	unfiltered["Seccomp"] = "0"
	for i, flags := range []uint64{pfKThread, pfUserWorker, pfIOWorker} {
		writeThread(t, proc, fmt.Sprint(101+i), flags|0x40, unfiltered)
	}
	if err := checkThreads(proc, 5000); err == nil {
		t.Error("a process without a thread of its own passed")
	}
	writeThread(t, proc, "100", 0x400100, thread())
	if err := checkThreads(proc, 5000); err != nil {
		t.Error(err)
	}
	if err := checkThreads(t.TempDir(), 5000); err == nil {
		t.Error("a process that is gone passed")
	}
	if err := checkThreads("/proc/self", os.Geteuid()); err == nil {
		t.Error("this process passed")
	}
}
