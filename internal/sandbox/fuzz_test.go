package sandbox

import "testing"

// An id goes into the names of files and cgroups, so nothing is taken for one
// that could mean another place there.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{"sb_a1b2c3d4e5f6", "sb_A1B2C3D4E5F6", "sb_../../../../etc", "sb_a1b2c3d4e5f6\n", "sb_a1b2c3d4e5f", "vm-a1b2c3d4e5f6", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		good := len(s) == 15 && s[:3] == "sb_"
		for i := 3; good && i < len(s); i++ {
			good = '0' <= s[i] && s[i] <= '9' || 'a' <= s[i] && s[i] <= 'f'
		}
		id, err := ParseID(s)
		if (err == nil) != good || good && string(id) != s || !good && id != "" {
			t.Fatalf("ParseID(%q) = %q, %v", s, id, err)
		}
	})
}
