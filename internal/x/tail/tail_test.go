package tail

import (
	"strings"
	"testing"
)

func TestBufferKeepsTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name   string
		writes []string
		want   string
	}{
		{"nothing", nil, ""},
		{"fits", []string{"ab", "cd"}, "abcd"},
		{"exactly full", []string{"ab", "cdefgh"}, "abcdefgh"},
		{"one write too long", []string{"x", "0123456789"}, "23456789"},
		{"many writes", strings.Split("0123456789abcdef", ""), "89abcdef"},
		{"overlap", []string{"012345", "6789ab"}, "456789ab"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := Buffer{Size: 8}
			for _, w := range tt.writes {
				if n, err := b.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("wrote %d, %v, want %d", n, err, len(w))
				}
			}
			if got := b.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
