package sandbox

import (
	"errors"
	"strings"
	"testing"
)

// Ids of programs go to the guest and come from it, so nothing else is taken for
// one.
func FuzzParseExecID(f *testing.F) {
	for _, s := range []string{"ex_a1b2c3d4e5f6", "ex_A1B2C3D4E5F6", "sb_a1b2c3d4e5f6", "ex_a1b2c3d4e5f6\n", "ex_a1b2c3d4e5f", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		good := len(s) == 15 && s[:3] == "ex_"
		for i := 3; good && i < len(s); i++ {
			good = '0' <= s[i] && s[i] <= '9' || 'a' <= s[i] && s[i] <= 'f'
		}
		id, err := ParseExecID(s)
		if (err == nil) != good || good && string(id) != s || !good && (id != "" || !errors.Is(err, ErrNotFound)) {
			t.Fatalf("ParseExecID(%q) = %q, %v", s, id, err)
		}
	})
}

func TestNewExecID(t *testing.T) {
	a, b := NewExecID(), NewExecID()
	if _, err := ParseExecID(string(a)); err != nil || a == b {
		t.Errorf("%s, %s, %v", a, b, err)
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]Signal{"HUP": 1, "INT": 2, "KILL": 9, "TERM": 15, "STOP": 19} {
		if got, err := ParseSignal(name); got != want || err != nil {
			t.Errorf("%s is %d, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "term", "SIGTERM", "15", "WINCH", "SEGV"} {
		if got, err := ParseSignal(name); got != 0 || !errors.Is(err, &Error{Code: CodeInvalid}) || !strings.Contains(err.Error(), "TERM") {
			t.Errorf("%q is %d, %v", name, got, err)
		}
	}
}
