package digest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	// The examples of FIPS 180-2 and of an empty message.
	for content, want := range map[string]string{
		"":    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := File(path); err != nil || got != want {
			t.Errorf("%q: got %s, %v", content, got, err)
		}
	}
}

func TestFileThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	if got, err := File(filepath.Join(dir, "none")); got != "" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := File(dir); got != "" || err == nil {
		t.Errorf("got %q, %v", got, err)
	}
}
