package store

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/lockfile"
)

// partial ends the name of the file of a probe that is being written.
const partial = ".partial"

// Probe checks that this process could write a record in run now, and that it is
// still the one that may: that the lock there is held, and by it. It is for a
// process that has a store open.
func Probe(run paths.Run) error {
	holder, err := os.ReadFile(run.Lock())
	if err != nil {
		return fmt.Errorf("probe lock: %w", err)
	}
	if pid := strings.TrimSpace(string(holder)); pid != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("probe lock: %s names process %q", run.Lock(), pid)
	}
	release, err := lockfile.Take(run.Lock())
	if err == nil {
		return errors.Join(fmt.Errorf("probe lock: nobody holds %s", run.Lock()), release())
	}
	if !errors.Is(err, lockfile.ErrHeld) {
		return fmt.Errorf("probe lock: %w", err)
	}
	path := run.Probe()
	if err = os.WriteFile(path+partial, holder, 0o600); err == nil { //nolint:gosec // the directory is the operator's to name
		err = os.Rename(path+partial, path)
	}
	if err != nil {
		_ = os.Remove(path + partial) // may not be there
		return fmt.Errorf("probe record: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("probe record: %w", err)
	}
	return nil
}
