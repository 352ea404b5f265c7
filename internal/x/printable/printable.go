// Package printable makes text out of bytes that nobody vouches for: what a
// guest says in an error, or writes to its console. The result can be put into
// an error, a log or a terminal: it is bounded, it is UTF-8, and no character in
// it controls anything.
package printable

import (
	"strings"
	"unicode"
)

// Head is the beginning of s, of at most limit bytes, on one line. What cannot
// be printed is replaced, each character by at most three bytes.
func Head(s string, limit int) string {
	return clean(s[:min(len(s), limit)], false)
}

// Tail is the end of s, of at most limit bytes, whose lines stay apart. What
// cannot be printed is replaced, each character by at most three bytes.
func Tail(s string, limit int) string {
	end := s[max(0, len(s)-limit):]
	return strings.TrimSpace(clean(strings.ReplaceAll(end, "\r\n", "\n"), true))
}

func clean(s string, lines bool) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || lines && r == '\n' {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}
