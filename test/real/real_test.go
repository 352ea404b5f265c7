// Package real tests emberd with real Firecracker microVMs, in the jail, on
// KVM. The tests run inside the machine, or on a host with KVM, where -real is
// given; `make test-real` does that.
//
// Every test has a daemon of its own, and each daemon that ends is searched for
// what it may have left: processes, cgroups, mounts, namespaces, files.
package real

import (
	"flag"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/daemon/daemontest"
)

var long = flag.Bool("long", false, "let floods, bombs, kills, the soak and the search for residue last as long as they have to once, and run every program of Node; three hours")

// idleEnv has this test binary do nothing for a long time.
const idleEnv = "EMBERD_TEST_IDLE"

// span is the first, or with -long the second.
func span[T any](short, longer T) T {
	if *long {
		return longer
	}
	return short
}

// As PID 1 of a microVM, this test binary is a guest in which no agent ever
// answers, or one of those of [runGuest]. It is also the executable of
// [TestVersionsAreChecked].
func TestMain(m *testing.M) {
	runStub()
	daemontest.Main(runVictim)
	if os.Getenv(idleEnv) != "" {
		time.Sleep(time.Hour)
	}
	if os.Getpid() == 1 {
		if cmdline := kernelCommandLine(); isGuest(cmdline) {
			runGuest(cmdline)
		}
		// The kernel opens no console for a PID 1 whose initramfs has none.
		_ = os.Mkdir("/dev", 0o755)
		if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err == nil {
			// Which is sent without an interrupt of the port's; not every kernel has one.
			_ = os.WriteFile("/dev/kmsg", []byte("<0>this guest says nothing more\n"), 0)
		}
		for { // a select without cases would be a deadlock, which Go ends
			time.Sleep(time.Hour)
		}
	}
	os.Exit(m.Run())
}

// kernelCommandLine is what the kernel was booted with. PID 1 begins without
// /proc, and finds it unmounted again.
func kernelCommandLine() string {
	_ = os.Mkdir("/proc", 0o555)
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return ""
	}
	line, _ := os.ReadFile("/proc/cmdline")
	_ = unix.Unmount("/proc", 0)
	return string(line)
}
