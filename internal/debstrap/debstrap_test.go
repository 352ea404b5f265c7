package debstrap

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fake puts a program called name first on PATH.
func fake(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh -eu\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestExtract(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	fake(t, dir, "apt-config", `
echo 'Acquire::http::Proxy http://proxy:3142'
echo 'Acquire::https::mirror.example::Proxy DIRECT'
echo 'Acquire::Retries 3'
echo 'Acquire::Languages none'
echo 'APT::Architecture amd64'`)
	fake(t, dir, "mmdebstrap", `printf '%s\n' "$@" "$TMPDIR" "$SOURCE_DATE_EPOCH" > "`+dir+`/args"`)

	got, err := Extract(t.Context(), Request{
		Suite: "bookworm", Packages: []string{"a", "b"}, Tree: "/tree", Tmp: "/tmp/x", Epoch: 42,
	})
	if err != nil || got != "/tree/var/cache/apt/archives" {
		t.Errorf("got %q, %v", got, err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(strings.TrimSpace(string(raw)), "\n")
	want := []string{
		"--include=a,b",
		`--aptopt=Acquire::http::Proxy "http://proxy:3142"`,
		`--aptopt=Acquire::https::mirror.example::Proxy "DIRECT"`,
		`--aptopt=Acquire::Retries "3"`,
		"bookworm", "/tree", "/tmp/x", "42",
	}
	if len(args) < len(want) || !slices.Equal(args[len(args)-len(want):], want) {
		t.Errorf("got arguments\n%q\nwant at the end\n%q", args, want)
	}

	fake(t, dir, "mmdebstrap", "echo 'E: no such suite' >&2; exit 1")
	if _, err := Extract(t.Context(), Request{}); err == nil || !strings.Contains(err.Error(), "no such suite") {
		t.Errorf("got %v, want what mmdebstrap said", err)
	}
}
