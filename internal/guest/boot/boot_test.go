package boot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseCmdline(t *testing.T) {
	tests := map[string]Params{
		"console=ttyS0 reboot=k panic=1 pci=off quiet emberd.interpreter=python3\n": {Interpreter: "python3"},
		"emberd.code_flag=-e emberd.file_flag=-x":                                   {CodeFlag: "-e", FileFlag: "-x"},
		"emberd.warm=prestart,sh,/usr/lib/warm.sh":                                  {Warm: "prestart,sh,/usr/lib/warm.sh"},
		"emberd.watch=/usr/lib,/root":                                               {Watch: "/usr/lib,/root"},
		"emberd.role=machine quiet":                                                 {Role: "machine"},
		"emberd.interpreter=/bin/sh emberd.interpreter=sh":                          {Interpreter: "sh"},
		"emberd.interpreter":                                                        {},
		"":                                                                          {},
		"xemberd.role=machine emberd.roles=x EMBERD.ROLE=x":                         {},
	}
	for line, want := range tests {
		if got := ParseCmdline(line); got != want {
			t.Errorf("ParseCmdline(%q) = %+v, want %+v", line, got, want)
		}
	}
}

func TestWaitFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vda")
	if err := waitFor(path, 20*time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not appear") {
		t.Errorf("error is %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = os.WriteFile(path, nil, 0o600) })
	for range 2 { // when it comes, and when it is there
		if err := waitFor(path, 10*time.Second); err != nil {
			t.Error(err)
		}
	}
}

// What a sandbox can write must be in memory, and nothing but devices' own
// directory may hold devices.
func TestMountsAreSafe(t *testing.T) {
	for _, m := range slices.Concat(early, root, late) {
		if m.fstype == "squashfs" && m.flags&unix.MS_RDONLY == 0 {
			t.Errorf("%s is writable", m.target)
		}
		if m.target == newRoot || m.target == lower || m.target == memory || strings.HasPrefix(m.target, "/dev") {
			continue
		}
		if m.flags&noDev != noDev {
			t.Errorf("%s allows devices or setuid programs", m.target)
		}
	}
}

// Whatever is written to files must count against the one limit.
func TestOneFilesystemTakesAllFiles(t *testing.T) {
	var limited int
	for _, m := range slices.Concat(early, root, late) {
		if m.fstype != "tmpfs" || m.target == "/dev/shm" { // shared memory is no file
			continue
		}
		limited++
		if m.target != memory {
			t.Errorf("%s is not what [LimitFiles] limits", m.target)
		}
	}
	if limited != 1 {
		t.Errorf("%d filesystems take files", limited)
	}
}
