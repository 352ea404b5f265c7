// Package real tests emberd with real Firecracker microVMs, in the jail, on
// KVM. The tests run inside the machine, or on a host with KVM, where -real is
// given; `make test-real` does that.
//
// Every test has a daemon of its own, and each daemon that ends is searched for
// what it may have left: processes, cgroups, mounts, namespaces, files.
package real

import (
	"fmt"
	"os"
	"testing"
)

// As PID 1 of a microVM, this test binary is a guest in which no agent ever
// answers.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		fmt.Println("this guest says nothing more")
		select {}
	}
	os.Exit(m.Run())
}
