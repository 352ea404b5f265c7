package source

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type record struct {
	Version string `json:"version"`
}

func TestReadWrite(t *testing.T) {
	dir := t.TempDir()
	if got, err := Read[record](dir); err != nil || got != (record{}) {
		t.Errorf("without a record: got %+v, %v", got, err)
	}
	want := record{Version: "1"}
	if err := Write(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := Read[record](dir); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	path := filepath.Join(dir, file)
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read[record](dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a broken record: got %v, want an error that names it", err)
	}
}
