package apikey

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"github.com/emberd/emberd/internal/x/lockfile"
)

// ErrUnknown is returned for an id that no key has.
var ErrUnknown = errors.New("no such key")

// version is the format of the file that this code reads and writes.
const version = 1

// maxFile is more than any number of keys that people manage takes.
const maxFile = 4 << 20

// contents is the file.
type contents struct {
	Version int   `json:"version"`
	Keys    []Key `json:"keys"`
}

// Create makes a key in the file at path, and the file if there is none. The
// key is returned this once.
func Create(path, name string) (key string, made Key, err error) {
	id, key := newKey()
	made = Key{ID: id, Name: name, Hash: hashOf(key), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	err = change(path, func(keys []Key) ([]Key, error) { return append(keys, made), nil })
	if err != nil {
		return "", Key{}, err
	}
	return key, made, nil
}

// List returns the keys in the file at path, oldest first, and none when there
// is no file.
func List(path string) ([]Key, error) {
	keys, _, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return keys, err
}

// Revoke takes the key called id out of the file at path. Every daemon that
// watches the file then refuses it, and ends the requests that it opened.
func Revoke(path, id string) error {
	return change(path, func(keys []Key) ([]Key, error) {
		i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("revoke %s: %w", id, ErrUnknown)
		}
		return slices.Delete(keys, i, i+1), nil
	})
}

// change replaces the file at path, whole, with what f makes of its keys.
func change(path string, f func([]Key) ([]Key, error)) (err error) {
	release, err := lockfile.Take(path + ".lock")
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	defer func() { err = errors.Join(err, release()) }()
	keys, err := List(path)
	if err != nil {
		return err
	}
	if keys, err = f(keys); err != nil {
		return err
	}
	b, err := json.MarshalIndent(contents{Version: version, Keys: keys}, "", "  ")
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	if err := renameio.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	return nil
}

// read returns the keys in the file at path, and which file that was.
func read(path string) ([]Key, fs.FileInfo, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, nil, fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("keys: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, info, fmt.Errorf("keys: %s can be written by others than its owner", path)
	}
	var c contents
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return nil, info, fmt.Errorf("keys: read %s: %w", path, err)
	}
	if c.Version != version {
		return nil, info, fmt.Errorf("keys: %s has format %d, this emberd reads %d", path, c.Version, version)
	}
	return c.Keys, info, nil
}
