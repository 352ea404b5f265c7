// Package source keeps the record that lies beside something fetched or built
// and says where it came from. What it says is the owner's business: a record is
// any value that JSON can hold.
package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// file is the record's name. It appears in its directory together with what it
// describes.
const file = "source.json"

// Read returns the record in dir, or the zero record if there is none.
func Read[T any](dir string) (T, error) {
	var rec T
	raw, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(raw, &rec); err != nil {
		return rec, fmt.Errorf("read record %s: %w", filepath.Join(dir, file), err)
	}
	return rec, nil
}

// Write puts a record into dir, which is not yet where anybody reads it.
func Write(dir string, rec any) error {
	raw, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, file), append(raw, '\n'), 0o644) //nolint:gosec // no secret
}
