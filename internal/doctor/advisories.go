package doctor

import (
	"fmt"
	"slices"
)

// version is a release of Firecracker: major, minor, patch.
type version [3]int

func parseVersion(s string) (version, error) {
	var v version
	if _, err := fmt.Sscanf(s, "%d.%d.%d", &v[0], &v[1], &v[2]); err != nil {
		return version{}, fmt.Errorf("%q is no version of Firecracker: %w", s, err)
	}
	return v, nil
}

func (v version) less(w version) bool { return slices.Compare(v[:], w[:]) < 0 }

// span is the releases from first on, up to but not including fixed.
type span struct{ first, fixed version }

// advisory is a known weakness of some releases.
type advisory struct {
	spans []span
	text  string
}

func (a advisory) affects(v version) bool {
	return slices.ContainsFunc(a.spans, func(s span) bool { return !v.less(s.first) && v.less(s.fixed) })
}

// recommended is the release without an entry below.
const recommended = "1.16.1"

var advisories = []advisory{
	{
		[]span{{version{1, 0, 0}, version{1, 13, 2}}, {version{1, 14, 0}, version{1, 14, 1}}},
		"CVE-2026-1386, the jailer follows links that a local user planted in the jail's directory (emberd keeps it closed to others)",
	},
	{
		[]span{{version{1, 13, 0}, version{1, 14, 4}}, {version{1, 15, 0}, version{1, 15, 1}}},
		"CVE-2026-5747, a guest can write outside a virtio device of the PCI transport (emberd does not enable PCI)",
	},
	{
		[]span{{version{1, 16, 0}, version{1, 16, 1}}},
		"a restored microVM's vsock can stay dead",
	},
	{
		[]span{{version{1, 0, 0}, version{1, 15, 0}}},
		"its release line gets no security fixes any more",
	},
}
