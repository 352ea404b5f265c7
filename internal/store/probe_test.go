package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/emberd/emberd/internal/paths"
)

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(run paths.Run) error
		fine  bool
	}{
		{"whole", func(paths.Run) error { return nil }, true},
		{"the lock was removed", func(run paths.Run) error { return os.Remove(run.Lock()) }, false},
		{"another took it", func(run paths.Run) error { return os.WriteFile(run.Lock(), []byte("1\n"), 0o600) }, false},
		{"nobody holds it", func(run paths.Run) error {
			b, err := os.ReadFile(run.Lock())
			if err == nil {
				err = os.Remove(run.Lock())
			}
			if err == nil {
				err = os.WriteFile(run.Lock(), b, 0o600)
			}
			return err
		}, false},
		{"no record can be written", func(run paths.Run) error { return os.Mkdir(run.Probe()+partial, 0o700) }, false},
		{"no record can be renamed", func(run paths.Run) error { return os.MkdirAll(filepath.Join(run.Probe(), "x"), 0o700) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run := paths.Run(t.TempDir())
			s, err := Open(run)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			before, err := os.ReadDir(string(run))
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.spoil(run); err != nil {
				t.Fatal(err)
			}
			if err := Probe(run); (err == nil) != tt.fine {
				t.Errorf("got %v", err)
			}
			if tt.fine {
				if after, err := os.ReadDir(string(run)); len(after) != len(before) || err != nil {
					t.Errorf("left behind: %v, %v", after, err)
				}
			}
		})
	}
}
