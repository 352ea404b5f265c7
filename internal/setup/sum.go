package setup

import (
	"fmt"
	"path/filepath"

	"github.com/emberd/emberd/internal/x/digest"
)

// wantSum is the check of a file that was fetched against its pinned SHA-256.
func wantSum(path, want string) error {
	got, err := digest.File(path)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s has sha256 %s, want %s", filepath.Base(path), got, want)
	}
	return nil
}
