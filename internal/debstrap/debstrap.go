// Package debstrap unpacks Debian packages into a directory with mmdebstrap.
//
// The packages are unpacked and not configured. So nothing of them runs on this
// host, apt's check of the archive's signatures is the trust, and the caches,
// logs and dates that maintainer scripts leave never arise.
package debstrap

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/emberd/emberd/internal/x/command"
)

// Request says what to unpack and where.
type Request struct {
	// Suite is the Debian release, Packages are names of it. What they depend on
	// is unpacked too.
	Suite    string
	Packages []string
	// Tree becomes the root of what is unpacked. Tmp is a directory for what
	// mmdebstrap needs in between.
	Tree, Tmp string
	// Epoch is the time, in seconds since 1970, that a reproducible build has.
	Epoch int64
}

// mergeUsr makes the links that Debian's packages expect of a system since
// release 12; the package usr-is-merged states that they are there.
const mergeUsr = `--setup-hook=for d in bin lib lib64 sbin; do mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d"; done`

// Extract unpacks what r asks for and returns the directory, inside the tree,
// in which the packages' own files remain.
func Extract(ctx context.Context, r Request) (archives string, err error) {
	options, err := aptOptions(ctx)
	if err != nil {
		return "", err
	}
	args := slices.Concat([]string{
		"--quiet", "--variant=extract", "--components=main", "--skip=cleanup/apt/cache",
		mergeUsr, "--include=" + strings.Join(r.Packages, ","),
	}, options, []string{r.Suite, r.Tree})
	_, err = command.Cmd{
		Name: "mmdebstrap", Args: args,
		Env: []string{"TMPDIR=" + r.Tmp, "LC_ALL=C", "SOURCE_DATE_EPOCH=" + strconv.FormatInt(r.Epoch, 10)},
	}.Run(ctx)
	if err != nil {
		return "", err
	}
	return filepath.Join(r.Tree, "var", "cache", "apt", "archives"), nil
}

// aptOptions returns the options that make mmdebstrap's apt reach the archive
// the way this host's apt does: through its proxy, and with its patience.
func aptOptions(ctx context.Context) ([]string, error) {
	dump, err := command.Run(ctx, "apt-config", "dump", "--no-empty", "--format", "%f %v%n")
	if err != nil {
		return nil, err
	}
	var args []string
	for line := range strings.Lines(string(dump)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if forwarded(key) {
			args = append(args, fmt.Sprintf("--aptopt=%s %q", key, value))
		}
	}
	return args, nil
}

func forwarded(key string) bool {
	if strings.HasPrefix(key, "Acquire::http") && strings.Contains(key, "::Proxy") {
		return true
	}
	return slices.Contains([]string{
		"Acquire::Retries", "Acquire::http::Timeout", "Acquire::https::Timeout",
		"Acquire::Check-Valid-Until", "Acquire::Check-Date",
	}, key)
}
