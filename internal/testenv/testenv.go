// Package testenv says which tests can run where, and has what several of them
// share.
//
// Tests come in two tiers. Plain ones need nothing and always run. Real ones
// boot microVMs; they run where -real is given, which is inside the machine or
// on a host with KVM. A test that was asked for and lacks what it needs fails:
// it never hides by skipping.
package testenv

import (
	"flag"
	"os"
	"testing"
)

var realTier = flag.Bool("real", false, "run the tests of real microVMs; needs root, KVM and cgroup v2")

// Real skips the test unless -real was given, and fails it when what real
// microVMs need is missing.
func Real(tb testing.TB) {
	tb.Helper()
	if !*realTier {
		tb.Skip("boots real microVMs; run by `make test-real`")
	}
	if os.Geteuid() != 0 {
		tb.Fatal("real microVMs need root")
	}
	for _, path := range []string{"/dev/kvm", "/sys/fs/cgroup/cgroup.controllers"} {
		if _, err := os.Stat(path); err != nil {
			tb.Fatalf("real microVMs: %v", err)
		}
	}
}
