// Package store keeps the records of sandboxes and microVMs on disk.
//
// The one idea: the disk is the registry and memory is a cache of it. A record
// is written before the first thing it describes exists and removed after the
// last is gone, so whatever happens to the daemon, the next one can find out
// what there may be to clear up. A microVM has a record of its own from when it
// is ready until nothing is left of it, with which the next daemon takes it over;
// the sandbox that uses it names it in its record. Whether a sandbox has ever had
// it is in the name of the record and not in it, so that a rename is enough. That
// of a sandbox whose request is to be carried out once is not removed but put
// aside, so that the answer to the request outlives the sandbox.
//
// Records live on tmpfs: they have to outlive the daemon, not the host, because
// the microVMs die with the host too. A rename is therefore all the durability
// there is. One daemon at a time uses a store; the lock says which.
package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
	"github.com/emberd/emberd/internal/x/lockfile"
)

// Fault points of the writing of a record, and of its removal.
const (
	FaultWrite  = "store.write"
	FaultRename = "store.rename"
	FaultRemove = "store.remove"
)

// FaultPoints are the steps that a test can break.
var FaultPoints = []string{FaultWrite, FaultRename, FaultRemove}

// version is the record format this code reads and writes.
const version = 2

// suffix ends the name of a record. unfinished is added to one that is being
// written, and quarantined to one that cannot be read, which keeps it for a
// person to look at and out of the way.
const (
	suffix      = ".json"
	spare       = ".spare" // in place of suffix, of a microVM that no sandbox has had
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
	// Spare says that the VM was made ahead and that no sandbox has had it.
	Spare bool `json:"-"`
	// Secret is what the VM's agent proves that it knows.
	Secret []byte `json:"secret"`
	// Handle is what finds its VMM, in the words of what launched it.
	Handle json.RawMessage `json:"handle"`
}

// record is a sandbox or a VM as it stands on disk.
type record struct {
	Version int `json:"version"`
	// Sum is that of what the record holds: a damaged one that could still be read
	// would tell of another VM, or of another end. One that a person has mended
	// need not have it.
	Sum     string          `json:"sum,omitempty"`
	Sandbox json.RawMessage `json:"sandbox,omitempty"`
	VM      json.RawMessage `json:"vm,omitempty"`
}

// sum is what has to be in [record.Sum].
func (r record) sum() string {
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE(append(bytes.Clone(r.Sandbox), r.VM...)))
}

// Store is an open store. Its methods may be called by any number of
// goroutines, but only by one at a time for the same id.
type Store struct {
	// Faults, which may be nil, is set before the store is used.
	Faults *fault.Set

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

// lockPatience is how long the lock of a daemon that has ended is waited for. Who
// was killed while it started a process has left its lock to that, until it
// executes something else.
const lockPatience = 5 * time.Second

// takeLock locks path for this process and writes its pid into it.
func takeLock(path string) (unlock func() error, err error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(lockPatience); ; <-tick.C {
		if unlock, err = lockfile.Take(path); err == nil {
			break
		}
		if !errors.Is(err, lockfile.ErrHeld) {
			return nil, err
		}
		text, _ := os.ReadFile(path)
		holder := strings.TrimSpace(string(text))
		pid, _ := strconv.Atoi(holder)
		if ended := pid > 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH); !ended || time.Now().After(deadline) {
			return nil, fmt.Errorf("another emberd (pid %s) is using %s", holder, filepath.Dir(path))
		}
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
	held, err := json.Marshal(sb)
	if err != nil {
		return fmt.Errorf("record %s: %w", sb.ID, err)
	}
	return s.put(s.sandboxes, string(sb.ID)+suffix, record{Sandbox: held})
}

// Delete removes the record of id. One that is not there is no error.
func (s *Store) Delete(id sandbox.ID) error { return s.remove(s.sandboxes, string(id)+suffix) }

// Load reads the record of each sandbox. One that cannot be read is set aside
// under another name and reported in the error; the others are returned all the
// same. What a daemon that was killed had not finished writing is removed.
func (s *Store) Load() ([]sandbox.Sandbox, error) { return load(s.sandboxes, suffix, ofSandbox) }

func ofSandbox(name string, r record) (sb sandbox.Sandbox, err error) {
	if r.Sandbox == nil {
		return sb, errors.New("holds no sandbox")
	}
	if err := json.Unmarshal(r.Sandbox, &sb); err != nil {
		return sb, err
	}
	if id, err := sandbox.ParseID(string(sb.ID)); err != nil || string(id) != name {
		return sb, fmt.Errorf("holds the id %q", sb.ID)
	}
	return sb, nil
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
func (s *Store) Forget(id sandbox.ID) error { return s.remove(s.answered, string(id)+suffix) }

// LoadRetired reads the records that were put aside, like [Store.Load].
func (s *Store) LoadRetired() ([]sandbox.Sandbox, error) { return load(s.answered, suffix, ofSandbox) }

// PutVM writes the record of a microVM, like [Store.Put].
func (s *Store) PutVM(vm VM) error {
	held, err := json.Marshal(vm) //nolint:gosec // the secret is what the record is for; nobody else can read it
	if err != nil {
		return fmt.Errorf("record %s: %w", vm.ID, err)
	}
	end := suffix
	if vm.Spare {
		end = spare
	}
	return s.put(s.vms, string(vm.ID)+end, record{VM: held})
}

// ClaimVM has the record of a spare microVM say that a sandbox has it, at once or
// not at all.
func (s *Store) ClaimVM(id sandbox.VMID) error {
	path := filepath.Join(s.vms, string(id))
	err := s.Faults.Hit(FaultRename)
	if err == nil {
		err = os.Rename(path+spare, path+suffix)
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	return nil
}

// DeleteVM removes the record of a microVM. One that is not there is no error.
func (s *Store) DeleteVM(id sandbox.VMID) error {
	return s.remove(s.vms, string(id)+suffix, string(id)+spare)
}

// LoadVMs reads the record of each microVM, like [Store.Load].
func (s *Store) LoadVMs() ([]VM, error) {
	vms, err := load(s.vms, suffix, ofVM)
	spares, sparesErr := load(s.vms, spare, ofVM)
	for _, vm := range spares {
		vm.Spare = true
		vms = append(vms, vm)
	}
	return vms, errors.Join(err, sparesErr)
}

func ofVM(name string, r record) (vm VM, err error) {
	if r.VM == nil {
		return vm, errors.New("holds no microVM")
	}
	if err := json.Unmarshal(r.VM, &vm); err != nil {
		return vm, err
	}
	if id, ok := sandbox.ParseVMID(string(vm.ID)); !ok || string(id) != name {
		return vm, fmt.Errorf("holds the id %q", vm.ID)
	}
	return vm, nil
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
		for _, end := range []string{suffix, spare} {
			if name, ok := strings.CutSuffix(e.Name(), end+quarantined); ok {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

func (s *Store) put(dir, name string, r record) error {
	r.Version, r.Sum = version, r.sum()
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	if err = s.Faults.Hit(FaultWrite); err == nil {
		err = os.WriteFile(path+unfinished, b, 0o600)
	}
	if err == nil {
		err = s.Faults.Hit(FaultRename)
	}
	if err == nil {
		err = os.Rename(path+unfinished, path)
	}
	if err != nil {
		_ = os.Remove(path + unfinished) // load would do it too
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}

// remove removes what there is of those names.
func (s *Store) remove(dir string, names ...string) error {
	err := s.Faults.Hit(FaultRemove)
	for i := 0; i < len(names) && (err == nil || errors.Is(err, fs.ErrNotExist)); i++ {
		err = os.Remove(filepath.Join(dir, names[i]))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", names[0], err)
	}
	return nil
}

// load reads the records in dir whose names end so. content returns what one of
// that name holds.
func load[T any](dir, end string, content func(name string, r record) (T, error)) ([]T, error) {
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
		if strings.HasSuffix(e.Name(), end+unfinished) {
			errs = append(errs, os.Remove(path))
		}
		name, ok := strings.CutSuffix(e.Name(), end)
		if !ok {
			continue
		}
		var of T
		r, err := read(path)
		if err == nil {
			of, err = content(name, r)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("record %s: %w", e.Name(), err), os.Rename(path, path+quarantined))
			continue
		}
		found = append(found, of)
	}
	return found, errors.Join(errs...)
}

func read(path string) (record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return record{}, err
	}
	in := json.NewDecoder(bytes.NewReader(b))
	in.DisallowUnknownFields() // or a damaged "sum" would be none
	var r record
	if err := in.Decode(&r); err != nil {
		return record{}, err
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return record{}, errors.New("goes on behind its end")
	}
	if r.Version != version {
		return record{}, fmt.Errorf("format version %d, this emberd knows %d", r.Version, version)
	}
	if r.Sum != "" && r.Sum != r.sum() {
		return record{}, errors.New("is not as it was written")
	}
	return r, nil
}
