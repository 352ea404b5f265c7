package printable

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestHead(t *testing.T) {
	for _, tt := range []struct {
		in    string
		limit int
		want  string
	}{
		{"as it is, ü 日本", 100, "as it is, ü 日本"},
		{"cut here", 3, "cut"},
		{"two\nlines\r\n", 100, "two�lines��"},
		{"\x1b[2J\x1b]0;title\x07", 100, "�[2J�]0;title�"},
		{"a\xff\xfe\x00b", 100, "a��b"},
		{"ü", 1, "�"},
		{"right\u202eleft", 100, "right�left"},
		{"", 0, ""},
	} {
		if got := Head(tt.in, tt.limit); got != tt.want {
			t.Errorf("Head(%q, %d) = %q, want %q", tt.in, tt.limit, got, tt.want)
		}
	}
}

func TestTail(t *testing.T) {
	for _, tt := range []struct {
		in    string
		limit int
		want  string
	}{
		{"cut here", 4, "here"},
		{"one\r\ntwo\r\n", 100, "one\ntwo"},
		{"level=INFO\rmsg=\x1b[1Aforged\x85", 100, "level=INFO�msg=�[1Aforged�"},
		{"日本", 4, "�本"},
	} {
		if got := Tail(tt.in, tt.limit); got != tt.want {
			t.Errorf("Tail(%q, %d) = %q, want %q", tt.in, tt.limit, got, tt.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b[2J\r\nb\xff", 5)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		if limit < 0 {
			return
		}
		head, tail := Head(s, limit), Tail(s, limit)
		for _, got := range []string{head, strings.ReplaceAll(tail, "\n", "")} {
			if !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) {
				t.Fatalf("%q of %q", got, s)
			}
		}
		if len(head) > 3*min(limit, len(s)) || len(tail) > 3*min(limit, len(s)) {
			t.Fatalf("%d and %d bytes of %d, limit %d", len(head), len(tail), len(s), limit)
		}
	})
}
