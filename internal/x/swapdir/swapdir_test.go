package swapdir

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	read := func(name string) string {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	write := func(content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(from, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(from, "sub", "file"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Publish(from, to); err != nil {
			t.Fatal(err)
		}
	}

	write("first")
	if got := read(filepath.Join(to, "sub", "file")); got != "first" {
		t.Errorf("published %q, want first", got)
	}
	if _, err := os.Stat(from); !os.IsNotExist(err) {
		t.Errorf("after the first publish %s: %v, want it gone", from, err)
	}

	write("second")
	if got := read(filepath.Join(to, "sub", "file")); got != "second" {
		t.Errorf("published %q, want second", got)
	}
	if got := read(filepath.Join(from, "sub", "file")); got != "first" {
		t.Errorf("left behind %q, want first", got)
	}
}

func TestPublishNothing(t *testing.T) {
	dir := t.TempDir()
	if err := Publish(filepath.Join(dir, "none"), filepath.Join(dir, "to")); err == nil {
		t.Error("publishing a directory that does not exist succeeded")
	}
}
