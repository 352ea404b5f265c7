package store

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
)

// A record is read as it would be written again, or set aside as it is.
func FuzzRecord(f *testing.F) {
	const id = sandbox.ID("sb_a1b2c3d4e5f6")
	for _, s := range []string{
		`{"version":2,"sandbox":{"id":"sb_a1b2c3d4e5f6","vm":"vm-a1b2c3d4e5f6","pack":"python","limits":{"vcpus":1,"memory_mib":256},"state":"running"}}`,
		`{"version":2,"sandbox":{"id":"sb_a1b2c3d4e5f6","created_at":"2025-01-02T03:04:05.6+07:00","expires_at":"9999-12-31T23:59:59-23:59"}}`,
		`{"version":2,"sandbox":{"id":"sb_ffffffffffff"}}`,
		`{"version":2,"sandbox":{"id":"sb_a1b2c3d4e5f6","once":{"tenant":"t","key":"k","request":"00"}}}`,
		`{"version":1,"sandbox":{"id":"sb_a1b2c3d4e5f6"}}`, `{"version":2}`, `null`, ``,
	} {
		f.Add([]byte(s))
	}
	run := paths.Run(f.TempDir())
	s, err := Open(run)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	path := filepath.Join(run.Sandboxes(), string(id)+suffix)
	f.Fuzz(func(t *testing.T, in []byte) {
		if err := os.WriteFile(path, in, 0o600); err != nil {
			t.Fatal(err)
		}
		found, err := s.Load()
		if (len(found) == 0) != (err != nil) {
			t.Fatalf("%d records with error %v", len(found), err)
		}
		if err != nil {
			if kept, err := os.ReadFile(path + quarantined); err != nil || string(kept) != string(in) {
				t.Fatalf("set aside was %q, %v", kept, err)
			}
			return
		}
		if found[0].ID != id {
			t.Fatalf("the record of %s is of %s", id, found[0].ID)
		}
		if err := s.Put(found[0]); err != nil {
			t.Fatal(err)
		}
		again, err := s.Load()
		if err != nil || !reflect.DeepEqual(again, found) {
			t.Fatalf("written again, %+v became %+v: %v", found, again, err)
		}
	})
}
