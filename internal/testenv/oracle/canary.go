package oracle

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"unicode"
	"unicode/utf8"
)

// Canary is a secret of the host that nothing else knows. Wherever its text
// turns up, somebody has read what was not theirs.
type Canary struct {
	// Text is put where nobody has any business: into files, environments, the
	// memory of another sandbox.
	Text string
}

// NewCanary returns a fresh secret.
func NewCanary() Canary { return Canary{Text: "canary-" + rand.Text()} }

// Plant writes the canary into a file that only its owner may read.
func (c Canary) Plant(path string) error {
	if err := os.WriteFile(path, []byte(c.Text+"\n"), 0o600); err != nil {
		return fmt.Errorf("plant canary: %w", err)
	}
	return nil
}

// Seen finds the canary in p, which was got from where: as it is, in hex, or
// in base64.
func (c Canary) Seen(where string, p []byte) []Finding {
	for form, text := range c.forms() {
		if bytes.Contains(p, []byte(text)) {
			return []Finding{{Read, fmt.Sprintf("%s holds the canary, %s", where, form)}}
		}
	}
	return nil
}

func (c Canary) forms() map[string]string {
	forms := map[string]string{"as it is": c.Text, "in hex": hex.EncodeToString([]byte(c.Text))}
	// In base64 three bytes share four characters, so there are three ways in
	// which the same text appears; the ends depend on what is around it.
	for shift := range 3 {
		whole := base64.StdEncoding.EncodeToString([]byte(c.Text[shift:]))
		forms[fmt.Sprintf("in base64 from byte %d", shift)] = whole[:len(whole)-4]
	}
	return forms
}

// maxRecord is the longest line that a log may have, in bytes.
const maxRecord = 16 << 10

// Log finds what a log must not hold, whatever a guest said: control characters,
// bytes that are no text, lines that are too long, panics.
func Log(log []byte) []Finding {
	var found []Finding
	for n, line := range bytes.Split(log, []byte("\n")) {
		where := fmt.Sprintf("line %d of the log", n+1)
		if len(line) > maxRecord {
			found = append(found, Finding{Write, fmt.Sprintf("%s has %d bytes", where, len(line))})
		}
		if !utf8.Valid(line) {
			found = append(found, Finding{Write, where + " is no text"})
		}
		if i := bytes.IndexFunc(line, unicode.IsControl); i >= 0 {
			found = append(found, Finding{Write, fmt.Sprintf("%s holds the control character %q", where, line[i])})
		}
		for _, fatal := range []string{"panic: ", "fatal error: ", "panic serving"} {
			if bytes.Contains(line, []byte(fatal)) {
				found = append(found, Finding{Crash, fmt.Sprintf("%s: %.200s", where, line)})
			}
		}
	}
	return found
}
