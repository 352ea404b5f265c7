package kernel

import "fmt"

// Record says where an installed kernel is from. It lies beside the kernel.
type Record struct {
	// Package is the Debian package, of the kernel itself or of its source.
	Package string `json:"package"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
	// Pin is the version that was wanted. The mirror may no longer have had it,
	// and then Version differs.
	Pin string `json:"pin"`
	// Parts identifies the modules that were asked for.
	Parts string `json:"parts"`
	// Build is how the kernel was built from the package's source. It is nil if
	// the package holds the kernel itself.
	Build *Build `json:"build,omitempty"`
}

// String names the kernel for people.
func (r Record) String() string {
	switch {
	case r.Version == "":
		return "kernel of unknown origin"
	case r.Build != nil:
		return fmt.Sprintf("kernel %s, built from %s %s", r.Build.Release, r.Package, r.Version)
	default:
		return fmt.Sprintf("Debian's %s %s", r.Package, r.Version)
	}
}
