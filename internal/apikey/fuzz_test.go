package apikey

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Of all strings only the key itself opens the door, and what has the form of a
// key has a check that fits.
func FuzzAdmit(f *testing.F) {
	path := filepath.Join(f.TempDir(), "keys.json")
	key, _, err := Create(path, "the one")
	if err != nil {
		f.Fatal(err)
	}
	ring, err := Open(path, nil)
	if err != nil {
		f.Fatal(err)
	}
	_, other := newKey()
	for _, s := range []string{other, "emb_" + check("emb"), "emb__", "emb___", "EMB_a_b_c", "", "_"} {
		f.Add(s, 0)
	}
	f.Add("", len(key)-1)
	f.Fuzz(func(t *testing.T, s string, keep int) {
		// The beginning of the key, which changes with each run, is not for the
		// fuzzer to find.
		s = key[:max(0, min(keep, len(key)))] + s
		_, good, ok := ring.Admit(s)
		if ok != (s == key) || ok != (good != nil) {
			t.Fatalf("%q was let in: %v", s, ok)
		}
		if id, ok := parse(s); ok && (len(s) < len("emb___")+7 || s[:4] != "emb_" || s[len(s)-7:] != check(s[:len(s)-8]) || s[4:4+len(id)] != id) {
			t.Fatalf("%q was taken for a key with the id %q", s, id)
		}
	})
}

// A file of keys is read as it would be written again, or not at all.
func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"keys":[]}`))
	f.Add([]byte(`{"version":1,"keys":[{"id":"a","sha256":"` + string(must(Hash{1}.MarshalText())) + `","created_at":"2025-01-02T03:04:05Z"}]}`))
	f.Add([]byte(`{"version":1,"keys":[{"id":"a","sha256":"00"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`[`))
	path := filepath.Join(f.TempDir(), "keys.json")
	f.Fuzz(func(t *testing.T, in []byte) {
		if err := os.WriteFile(path, in, 0o600); err != nil {
			t.Fatal(err)
		}
		keys, _, err := read(path)
		ring, ringErr := Open(path, nil)
		if (err == nil) != (ringErr == nil) {
			t.Fatalf("the list says %v, the daemon %v", err, ringErr)
		}
		if err != nil {
			if len(keys) > 0 {
				t.Fatalf("%d keys came with %v", len(keys), err)
			}
			return
		}
		if !ring.Asked() || ring.Len() > len(keys) {
			t.Fatalf("%d keys of %d, asked: %v", ring.Len(), len(keys), ring.Asked())
		}
		b, err := json.Marshal(contents{Version: version, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		again, _, err := read(path)
		same := func(a, b Key) bool {
			return a.ID == b.ID && a.Name == b.Name && a.Hash == b.Hash && a.CreatedAt.Equal(b.CreatedAt)
		}
		if err != nil || !slices.EqualFunc(keys, again, same) {
			t.Fatalf("written again, %v became %v: %v", keys, again, err)
		}
	})
}

func must(b []byte, _ error) []byte { return b }
