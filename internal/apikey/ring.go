package apikey

import (
	"context"
	"crypto/subtle"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// poll is how often a [Ring] looks whether its file changed. It bounds how long
// a revoked key is still good for, and costs one stat.
const poll = 250 * time.Millisecond

// Ring is the keys of a file, as the daemon checks them. Its methods may be
// called by any number of goroutines, [Ring.Watch] by one.
type Ring struct {
	path string
	log  *slog.Logger

	mu    sync.RWMutex
	asked bool        // there is a file, whatever it holds
	file  fs.FileInfo // the one that was read
	keys  map[string]*live
}

// live is a key that is good until revoke is called.
type live struct {
	hash   Hash
	good   context.Context
	revoke context.CancelFunc
}

// Open returns the keys in the file at path, which need not exist.
func Open(path string, log *slog.Logger) (*Ring, error) {
	r := &Ring{path: path, log: log}
	if err := r.reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Watch keeps r in step with its file until ctx ends.
func (r *Ring) Watch(ctx context.Context) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var failure string
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !r.changed() {
			continue
		}
		err := r.reload()
		switch {
		case err == nil:
			failure = ""
		case err.Error() != failure:
			failure = err.Error()
			r.log.Error("keys cannot be read: none is accepted", "err", err)
		}
	}
}

// Asked reports whether clients are asked for a key.
func (r *Ring) Asked() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.asked
}

// Len is how many keys there are.
func (r *Ring) Len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.keys)
}

// Admit reports whether key is good, and its id. The context ends when it no
// longer is.
func (r *Ring) Admit(key string) (id string, good context.Context, ok bool) {
	id, ok = parse(key)
	if !ok {
		return "", nil, false
	}
	hash := hashOf(key)
	r.mu.RLock()
	defer r.mu.RUnlock()
	k := r.keys[id]
	if k == nil || subtle.ConstantTimeCompare(k.hash[:], hash[:]) != 1 {
		return "", nil, false
	}
	return id, k.good, true
}

// changed reports whether the file is not the one that was read.
func (r *Ring) changed() bool {
	info, err := os.Stat(r.path)
	if err != nil {
		return r.asked || !errors.Is(err, fs.ErrNotExist)
	}
	return r.file == nil || !os.SameFile(info, r.file) ||
		!info.ModTime().Equal(r.file.ModTime()) || info.Size() != r.file.Size() || info.Mode() != r.file.Mode()
}

// reload reads the file. When it cannot be read, no key is good any more.
func (r *Ring) reload() error {
	keys, info, err := read(r.path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing {
		err = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked, r.file = !missing, info
	before := r.keys
	r.keys = make(map[string]*live, len(keys))
	for _, k := range keys {
		if old := before[k.ID]; old != nil && old.hash == k.Hash {
			r.keys[k.ID] = old
			continue
		}
		good, revoke := context.WithCancel(context.Background())
		r.keys[k.ID] = &live{hash: k.Hash, good: good, revoke: revoke}
	}
	for id, k := range before {
		if r.keys[id] != k {
			k.revoke()
		}
	}
	return err
}
