package support

import "regexp"

// leftOut stands for what was there.
const leftOut = "[left out]"

// secrets are what has no place in a bundle, and what to put there instead.
var secrets = []struct {
	found *regexp.Regexp
	put   string
}{
	// emberd's API keys, wherever they are.
	{regexp.MustCompile(`\bemb_[a-z2-7]+(_[a-z2-7]*)*`), leftOut},
	// Private keys, as PEM, to their end or that of the text.
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\z)`), leftOut},
	// What an HTTP client proves itself with.
	{regexp.MustCompile(`(?i)\b(authorization["']?\s*[:=]\s*)[^\n]*`), "${1}" + leftOut},
	{regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}`), "${1} " + leftOut},
	// A password in a URL.
	{regexp.MustCompile(`(://[^/\s:@]*:)[^/\s@]+@`), "${1}" + leftOut + "@"},
	// Settings, variables and options that are called like a secret.
	{regexp.MustCompile(`(?i)([\w.-]*(?:password|passwd|passphrase|secret|token|credential|api[_-]?key|private[_-]?key)[\w.-]*["']?\s*[=:]\s*)("[^"\n]*"|'[^'\n]*'|[^\s,;]+)`), "${1}" + leftOut},
}

// scrub returns text without what has no place in a bundle.
func scrub(text []byte) []byte {
	for _, s := range secrets {
		text = s.found.ReplaceAll(text, []byte(s.put))
	}
	return text
}

// console is what a guest wrote to its console, in a record of a log: from there to
// the record's end.
var console = regexp.MustCompile(`((?:\\n|\b)console(?:: |=|":\s*))[^\n]*`)

// cutConsoles returns a log without what guests wrote.
func cutConsoles(log []byte) []byte { return console.ReplaceAll(log, []byte("${1}"+leftOut)) }
