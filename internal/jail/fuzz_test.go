package jail

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A VMM chooses the names of its threads. Whatever it calls one, it passes for
// neither a thread of the kernel nor a confined one.
func FuzzThreadName(f *testing.F) {
	for _, name := range []string{"fc_vcpu 0", ") S 1 1 1 0 -1 ", "a)\nSeccomp:\t2", "", ") (", "a b c d e f g h"} {
		f.Add(name)
	}
	task := f.TempDir()
	f.Fuzz(func(t *testing.T, name string) {
		if strings.ContainsRune(name, 0) {
			return
		}
		name = name[:min(len(name), 15)] // what the kernel keeps of it
		escaped := strings.NewReplacer("\\", "\\\\", "\n", "\\n").Replace(name)
		for file, content := range map[string]string{
			"stat":   fmt.Sprintf("4711 (%s) S 1 4711 4711 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 2 0 100\n", name),
			"status": fmt.Sprintf("Name:\t%s\nUmask:\t0077\nSeccomp:\t0\nNoNewPrivs:\t1\n", escaped),
		} {
			if err := os.WriteFile(filepath.Join(task, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if flags, err := threadFlags(filepath.Join(task, "stat")); err != nil || flags != 4194560 {
			t.Fatalf("flags %d, %v", flags, err)
		}
		if own, err := checkThread(task, 1000); err == nil || !own {
			t.Fatalf("it passes: own %v, %v", own, err)
		}
	})
}

// A range of user ids is taken if it is written as it would be again and holds
// no id that belongs to somebody.
func FuzzIDRange(f *testing.F) {
	for _, s := range []string{"100000-165535", "0-10", "65534-65534", "4294967294-4294967295", "5-1", "1000-18446744073709551615", "+1000-2000", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var r IDRange
		if r.UnmarshalText([]byte(s)) != nil {
			if r != (IDRange{}) {
				t.Fatalf("%q is refused and makes %+v", s, r)
			}
			return
		}
		text, err := r.MarshalText()
		var again IDRange
		if err != nil || again.UnmarshalText(text) != nil || again != r {
			t.Fatalf("%q makes %+v, which is written %q, %v", s, r, text, err)
		}
		if last := r.First + r.Count - 1; r.Count < 1 || r.First < 1000 || last > 1<<32-2 || r.First <= 65535 && last >= 65534 {
			t.Fatalf("%q makes %+v", s, r)
		}
	})
}
