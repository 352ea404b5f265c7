// Package store keeps the records of sandboxes and microVMs on disk.
//
// The one idea: the disk is the registry and memory is a cache of it. A record
// is written before the first thing it describes exists and removed after the
// last is gone, so whatever happens to the daemon, the next one can find out
// what there may be to clear up. A microVM has a record of its own from when it
// is ready until nothing is left of it, with which the next daemon takes it over;
// the sandbox that uses it names it in its record, and one that none names was
// never used. That of a sandbox whose request is to be carried out once is not
// removed but put aside, so that the answer to the request outlives the sandbox.
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
const version = 2

// suffix ends the name of a record. unfinished is added to one that is being
// written, and quarantined to one that cannot be read, which keeps it for a
// person to look at and out of the way.
const (
	suffix      = ".json"
	unfinished  = ".partial"
	quarantined = ".corrupt"
)

// VM is what finds a microVM again.
type VM struct {
	ID   sandbox.VMID `json:"id"`
	Pack string       `json:"pack"`
	// Rootfs is the digest of the pack's image, and Emberd the version of the
	// daemon that made the VM: what it would be made of now may be something else.
	Rootfs string         `json:"rootfs"`
	Emberd string         `json:"emberd"`
	Limits sandbox.Limits `json:"limits"`
	// BootPath is how the VM came to be.
	BootPath sandbox.BootPath `json:"boot_path"`
	// Network says that the VM has a network interface.
	Network bool `json:"network,omitempty"`
	// Secret is what the VM's agent proves that it knows.
	Secret []byte `json:"secret"`
	// Handle is what finds its VMM, in the words of what launched it.
	Handle json.RawMessage `json:"handle"`
}

// record is a sandbox or a VM as it stands on disk.
type record struct {
	Version int              `json:"version"`
	Sandbox *sandbox.Sandbox `json:"sandbox,omitempty"`
	VM      *VM              `json:"vm,omitempty"`
}

// Store is an open store. Its methods may be called by any number of
// goroutines, but only by one at a time for the same id.
type Store struct {
	sandboxes, vms, answered string // directories
	unlock                   func() error
}

// Open makes the run directory if need be and takes its lock. When another
// daemon holds it, the error names that daemon's process.
func Open(run paths.Run) (*Store, error) {
	s := &Store{sandboxes: run.Sandboxes(), vms: run.VMs(), answered: run.Answered()}
	for _, dir := range []string{s.sandboxes, s.vms, s.answered} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("run directory: %w", err)
		}
	}
	var err error
	if s.unlock, err = takeLock(run.Lock()); err != nil {
		return nil, err
	}
	return s, nil
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
	return put(s.sandboxes, string(sb.ID), record{Sandbox: &sb})
}

// Delete removes the record of id. One that is not there is no error.
func (s *Store) Delete(id sandbox.ID) error { return remove(s.sandboxes, string(id)) }

// Load reads the record of each sandbox. One that cannot be read is set aside
// under another name and reported in the error; the others are returned all the
// same. What a daemon that was killed had not finished writing is removed.
func (s *Store) Load() ([]sandbox.Sandbox, error) { return load(s.sandboxes, ofSandbox) }

func ofSandbox(name string, r record) (*sandbox.Sandbox, error) {
	if r.Sandbox == nil {
		return nil, errors.New("holds no sandbox")
	}
	if id, err := sandbox.ParseID(string(r.Sandbox.ID)); err != nil || string(id) != name {
		return nil, fmt.Errorf("holds the id %q", r.Sandbox.ID)
	}
	return r.Sandbox, nil
}

// Retire puts the record of id aside, at once or not at all: nothing is left of
// the sandbox, and the request for it is remembered. One that is not there is no
// error.
func (s *Store) Retire(id sandbox.ID) error {
	name := string(id) + suffix
	err := os.Rename(filepath.Join(s.sandboxes, name), filepath.Join(s.answered, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", id, err)
	}
	return nil
}

// Forget removes a record that was put aside. One that is not there is no error.
func (s *Store) Forget(id sandbox.ID) error { return remove(s.answered, string(id)) }

// LoadRetired reads the records that were put aside, like [Store.Load].
func (s *Store) LoadRetired() ([]sandbox.Sandbox, error) { return load(s.answered, ofSandbox) }

// PutVM writes the record of a microVM, like [Store.Put].
func (s *Store) PutVM(vm VM) error { return put(s.vms, string(vm.ID), record{VM: &vm}) }

// DeleteVM removes the record of a microVM. One that is not there is no error.
func (s *Store) DeleteVM(id sandbox.VMID) error { return remove(s.vms, string(id)) }

// LoadVMs reads the record of each microVM, like [Store.Load].
func (s *Store) LoadVMs() ([]VM, error) {
	return load(s.vms, func(name string, r record) (*VM, error) {
		if r.VM == nil {
			return nil, errors.New("holds no microVM")
		}
		if id, ok := sandbox.ParseVMID(string(r.VM.ID)); !ok || string(id) != name {
			return nil, fmt.Errorf("holds the id %q", r.VM.ID)
		}
		return r.VM, nil
	})
}

// SetAside names the sandboxes and the microVMs whose records could not be read,
// now or by an earlier daemon. What they are of may still be there.
func (s *Store) SetAside() (sandboxes, vms []string, err error) {
	sandboxes, err = setAside(s.sandboxes)
	if err != nil {
		return nil, nil, err
	}
	vms, err = setAside(s.vms)
	return sandboxes, vms, err
}

func setAside(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix+quarantined); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

func put(dir, name string, r record) error {
	r.Version = version
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	path := filepath.Join(dir, name+suffix)
	if err = os.WriteFile(path+unfinished, b, 0o600); err == nil {
		err = os.Rename(path+unfinished, path)
	}
	if err != nil {
		_ = os.Remove(path + unfinished) // load would do it too
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}

func remove(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}

// load reads the records in dir. content returns what one of that name holds.
func load[T any](dir string, content func(name string, r record) (*T, error)) ([]T, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	var (
		found []T
		errs  []error
	)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasSuffix(e.Name(), suffix+unfinished) {
			errs = append(errs, os.Remove(path))
		}
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		var of *T
		r, err := read(path)
		if err == nil {
			of, err = content(name, r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("record %s: %w", e.Name(), err), os.Rename(path, path+quarantined))
			continue
		}
		found = append(found, *of)
	}
	return found, errors.Join(errs...)
}

func read(path string) (record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	if r.Version != version {
		return record{}, fmt.Errorf("format version %d, this emberd knows %d", r.Version, version)
	}
	return r, nil
}
