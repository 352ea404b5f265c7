package firecracker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/emberd/emberd/internal/x/command"
)

// The releases that emberd works with: minor versions of 1.x.
const (
	minMinor = 12
	maxMinor = 16
)

// release is a release of Firecracker: major, minor, patch.
type release [3]int

func (r release) String() string { return fmt.Sprintf("%d.%d.%d", r[0], r[1], r[2]) }

// refused are the releases from first on, up to but not including fixed, that no
// guest is run on.
var refused = []struct {
	first, fixed release
	why          string
}{
	{release{1, 13, 0}, release{1, 14, 4}, "in which a guest can write outside a device's memory (CVE-2026-5747)"},
	{release{1, 15, 0}, release{1, 15, 1}, "in which a guest can write outside a device's memory (CVE-2026-5747)"},
	{release{1, 16, 0}, release{1, 16, 1}, "whose vsock can stay dead after a restore"},
}

// remedy is what to do about executables that cannot be used.
const remedy = "`emberctl setup` installs Firecracker, with --firecracker DIR the release in a directory"

// patience is how long an executable has to say its version. It takes
// milliseconds, and a daemon that waits for ever says nothing.
const patience = 10 * time.Second

var errNoVersion = errors.New("it does not say its version")

var versionLine = regexp.MustCompile(`^(?:Firecracker|Jailer) v(\d+)\.(\d+)\.(\d+)`)

// CheckVersions asks both executables for their version and returns it. It is
// an error if they are not of one release, or of one that emberd does not work
// with.
func CheckVersions(ctx context.Context, firecracker, jailer string) (string, error) {
	vmm, err := version(ctx, firecracker)
	if err != nil {
		return "", err
	}
	jail, err := version(ctx, jailer)
	if err != nil {
		return "", err
	}
	if vmm != jail {
		return "", fmt.Errorf("firecracker is version %s and its jailer %s, which have to be of one release; %s", vmm, jail, remedy)
	}
	return vmm, nil
}

func version(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errNoVersion)
	defer cancel()
	out, err := command.Run(ctx, path, "--version")
	if err != nil {
		return "", fmt.Errorf("%w; %s", err, remedy)
	}
	v, err := parseVersion(out)
	if err != nil {
		return "", fmt.Errorf("%s %w; %s", path, err, remedy)
	}
	return v.String(), nil
}

// parseVersion reads what an executable says its version is. The error of one
// that is not to be used says what is wrong with the executable.
func parseVersion(out []byte) (release, error) {
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return release{}, errors.New("--version prints no version of Firecracker or its jailer")
	}
	var r release
	for i := range r {
		n, err := strconv.Atoi(string(m[i+1]))
		if err != nil {
			return release{}, fmt.Errorf("--version: %w", err)
		}
		r[i] = n
	}
	if r[0] != 1 || r[1] < minMinor || r[1] > maxMinor {
		return release{}, fmt.Errorf("is version %v; emberd works with 1.%d to 1.%d", r, minMinor, maxMinor)
	}
	for _, bad := range refused {
		if slices.Compare(r[:], bad.first[:]) >= 0 && slices.Compare(r[:], bad.fixed[:]) < 0 {
			return release{}, fmt.Errorf("is version %v, %s; use %v", r, bad.why, bad.fixed)
		}
	}
	return r, nil
}
