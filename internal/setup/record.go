package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// recordFile, in the directory of a part, says where the part came from. It
// appears together with the part.
const recordFile = "source.json"

// readRecord returns the record in dir, or the zero record if there is none.
func readRecord[T any](dir string) (T, error) {
	var rec T
	raw, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(raw, &rec); err != nil {
		return rec, fmt.Errorf("read record %s: %w", filepath.Join(dir, recordFile), err)
	}
	return rec, nil
}

func writeRecord(dir string, rec any) error {
	raw, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, recordFile), append(raw, '\n'), 0o644) //nolint:gosec // no secret
}

// fileSum returns the SHA-256 of a file in hex.
func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hash %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// wantSum is the check of a file that was fetched against its pinned SHA-256.
func wantSum(path, want string) error {
	got, err := fileSum(path)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s has sha256 %s, want %s", filepath.Base(path), got, want)
	}
	return nil
}
