package firecracker

import (
	"context"
	"fmt"
	"regexp"
	"strconv"

	"github.com/emberd/emberd/internal/x/command"
)

// The releases that emberd works with: minor versions of 1.x. Firecracker 1.16.0
// is not among them: after a snapshot is restored its vsock may stay dead.
const (
	minMinor = 12
	maxMinor = 16
	badMinor = 16
	badPatch = 0
)

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
		return "", fmt.Errorf("firecracker is version %s and its jailer %s; they have to be of one release", vmm, jail)
	}
	return vmm, nil
}

func version(ctx context.Context, path string) (string, error) {
	out, err := command.Run(ctx, path, "--version")
	if err != nil {
		return "", fmt.Errorf("%w; `emberctl setup` installs it", err)
	}
	return parseVersion(path, out)
}

func parseVersion(path string, out []byte) (string, error) {
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s --version prints no version of Firecracker or its jailer", path)
	}
	var n [3]int
	for i := range n {
		v, err := strconv.Atoi(string(m[i+1]))
		if err != nil {
			return "", fmt.Errorf("%s --version: %w", path, err)
		}
		n[i] = v
	}
	v := fmt.Sprintf("%d.%d.%d", n[0], n[1], n[2])
	switch {
	case n[0] != 1 || n[1] < minMinor || n[1] > maxMinor:
		return "", fmt.Errorf("%s is version %s; emberd works with 1.%d to 1.%d", path, v, minMinor, maxMinor)
	case n[1] == badMinor && n[2] == badPatch:
		return "", fmt.Errorf("%s is version %s, whose vsock can die after a restore; use 1.16.1", path, v)
	}
	return v, nil
}
