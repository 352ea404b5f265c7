// Package store keeps the record of each sandbox on disk.
//
// The one idea: the disk is the registry and memory is a cache of it. A record
// is written before the first thing it describes exists and removed after the
// last is gone, so whatever happens to the daemon, the next one can find out
// what there may be to clear up.
//
// Records live on tmpfs: they have to outlive the daemon, not the host, because
// the microVMs die with the host too. A rename is therefore all the durability
// there is. One daemon at a time uses a store; the lock says which.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/lockfile"
)

// version is the record format this code reads and writes.
const version = 1

// suffix ends the name of a record. unfinished is added to one that is being
// written, and quarantined to one that cannot be read, which keeps it for a
// person to look at and out of the way.
const (
	suffix      = ".json"
	unfinished  = ".partial"
	quarantined = ".corrupt"
)

// record is a sandbox as it stands on disk.
type record struct {
	Version int             `json:"version"`
	Sandbox sandbox.Sandbox `json:"sandbox"`
}

// Store is an open store. Its methods may be called by any number of
// goroutines, but only by one at a time for the same id.
type Store struct {
	dir    string
	unlock func() error
}

// Open makes the run directory if need be and takes its lock. When another
// daemon holds it, the error names that daemon's process.
func Open(run paths.Run) (*Store, error) {
	if err := os.MkdirAll(run.Sandboxes(), 0o700); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	unlock, err := takeLock(run.Lock())
	if err != nil {
		return nil, err
	}
	return &Store{dir: run.Sandboxes(), unlock: unlock}, nil
}

// takeLock locks path for this process and writes its pid into it.
func takeLock(path string) (unlock func() error, err error) {
	unlock, err = lockfile.Take(path)
	if errors.Is(err, lockfile.ErrHeld) {
		holder, _ := os.ReadFile(path)
		return nil, fmt.Errorf("another emberd (pid %s) is using %s", strings.TrimSpace(string(holder)), filepath.Dir(path))
	}
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), unlock())
	}
	return unlock, nil
}

// Close drops the lock. Records stay.
func (s *Store) Close() error { return s.unlock() }

// Put writes the record of sb, replacing an older one at once or not at all.
func (s *Store) Put(sb sandbox.Sandbox) error {
	b, err := json.Marshal(record{Version: version, Sandbox: sb})
	if err != nil {
		return fmt.Errorf("record %s: %w", sb.ID, err)
	}
	path := s.path(sb.ID)
	if err = os.WriteFile(path+unfinished, b, 0o600); err == nil {
		err = os.Rename(path+unfinished, path)
	}
	if err != nil {
		_ = os.Remove(path + unfinished) // Load would do it too
		return fmt.Errorf("record %s: %w", sb.ID, err)
	}
	return nil
}

// Delete removes the record of id. One that is not there is no error.
func (s *Store) Delete(id sandbox.ID) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", id, err)
	}
	return nil
}

// Load reads every record. One that cannot be read is set aside under another
// name and reported in the error; the others are returned all the same. What a
// daemon that was killed had not finished writing is removed.
func (s *Store) Load() ([]sandbox.Sandbox, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	var (
		found []sandbox.Sandbox
		errs  []error
	)
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasSuffix(e.Name(), suffix+unfinished) {
			errs = append(errs, os.Remove(path))
		}
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		sb, err := read(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("record %s: %w", e.Name(), err), os.Rename(path, path+quarantined))
			continue
		}
		found = append(found, sb)
	}
	return found, errors.Join(errs...)
}

func read(path string) (sandbox.Sandbox, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return sandbox.Sandbox{}, err
	}
	if r.Version != version {
		return sandbox.Sandbox{}, fmt.Errorf("format version %d, this emberd knows %d", r.Version, version)
	}
	id, err := sandbox.ParseID(string(r.Sandbox.ID))
	if err != nil || string(id)+suffix != filepath.Base(path) {
		return sandbox.Sandbox{}, fmt.Errorf("holds the id %q", r.Sandbox.ID)
	}
	return r.Sandbox, nil
}

func (s *Store) path(id sandbox.ID) string {
	return filepath.Join(s.dir, string(id)+suffix)
}
