package apikey

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// create makes a key and returns it.
func create(t *testing.T, path, name string) (string, Key) {
	t.Helper()
	key, made, err := Create(path, name)
	if err != nil {
		t.Fatal(err)
	}
	return key, made
}

func open(t *testing.T, path string) *Ring {
	t.Helper()
	r, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestOnlyHashesAreKept reads back what is on disk.
func TestOnlyHashesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "keys.json")
	key, made := create(t, path, "laptop")
	if !regexp.MustCompile(`^emb_[a-z2-7]{8}_[a-z2-7]{32}_[a-z2-7]{7}$`).MatchString(key) {
		t.Errorf("key %q", key)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range append(strings.Split(key, "_")[2:], key) {
		if bytes.Contains(b, []byte(part)) {
			t.Errorf("the file holds %q of the key", part)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	keys, err := List(path)
	if err != nil || len(keys) != 1 || keys[0] != made || keys[0].Name != "laptop" {
		t.Errorf("got %+v, %v, want %+v", keys, err, made)
	}
}

func TestAdmit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	if r := open(t, path); r.Asked() || r.Len() != 0 {
		t.Error("keys are asked for where there is no file")
	}
	key, made := create(t, path, "")
	other, _ := create(t, path, "")
	_, foreign := newKey()
	r := open(t, path)
	if !r.Asked() || r.Len() != 2 {
		t.Errorf("asked %v, %d keys", r.Asked(), r.Len())
	}
	swapped := strings.Split(other, "_")
	swapped[1] = made.ID
	swap := strings.Join(swapped[:3], "_")
	for name, tt := range map[string]struct {
		key string
		ok  bool
	}{
		"first": {key, true}, "second": {other, true},
		"none": {"", false}, "foreign": {foreign, false}, "id alone": {made.ID, false},
		"cut": {key[:len(key)-1], false}, "longer": {key + "a", false}, "upper case": {strings.ToUpper(key), false},
		"another key's secret": {swap + "_" + check(swap), false},
		"too many parts":       {"emb_a_b_c_" + check("emb_a_b_c"), false},
		"the hash":             {string(made.Hash[:]), false},
	} {
		if _, good, ok := r.Admit(tt.key); ok != tt.ok || ok && good.Err() != nil {
			t.Errorf("%s: %v, want %v", name, ok, tt.ok)
		}
	}
}

// TestRevokeReachesOpenRequests checks that what a key opened ends with it, soon,
// and that what another opened goes on.
func TestRevokeReachesOpenRequests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	key, made := create(t, path, "")
	other, _ := create(t, path, "")
	r := open(t, path)
	watch(t, r)
	_, good, _ := r.Admit(key)
	_, otherGood, _ := r.Admit(other)

	began := time.Now()
	if err := Revoke(path, made.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case <-good.Done():
		t.Logf("after %v", time.Since(began))
	case <-time.After(time.Second):
		t.Fatal("still good a second after it was revoked")
	}
	if _, _, ok := r.Admit(key); ok {
		t.Error("a revoked key is admitted")
	}
	if _, _, ok := r.Admit(other); !ok || otherGood.Err() != nil {
		t.Error("another key went with it")
	}
	if err := Revoke(path, made.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("revoked twice: %v", err)
	}
}

// TestWatch follows the file through what can become of it.
func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	r := open(t, path)
	watch(t, r)
	key, made := create(t, path, "")
	await(t, "the first key", func() bool { _, _, ok := r.Admit(key); return ok })
	if err := Revoke(path, made.ID); err != nil {
		t.Fatal(err)
	}
	await(t, "no key left", func() bool { return r.Len() == 0 })
	if !r.Asked() {
		t.Error("revoking the last key opened the API")
	}
	key, _ = create(t, path, "")
	await(t, "a new key", func() bool { _, _, ok := r.Admit(key); return ok })
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "a broken file", func() bool { return r.Len() == 0 })
	if !r.Asked() {
		t.Error("breaking the file opened the API")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	await(t, "no file", func() bool { return !r.Asked() })
}

func TestBadFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"not JSON":         {"keys", 0o600, "invalid character"},
		"later format":     {`{"version":2}`, 0o600, "format 2"},
		"short hash":       {`{"version":1,"keys":[{"id":"a","sha256":"00"}]}`, 0o600, "not a SHA-256"},
		"others may write": {`{"version":1}`, 0o666, "can be written by others"},
	} {
		path := filepath.Join(t.TempDir(), "keys.json")
		if err := errors.Join(os.WriteFile(path, []byte(tt.text), tt.mode), os.Chmod(path, tt.mode)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
		if _, _, err := Create(path, ""); err == nil {
			t.Errorf("%s: a key was added", name)
		}
	}
}

// watch has r watched until the test ends.
func watch(t *testing.T, r *Ring) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Watch(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not seen", what)
		}
	}
}
