package httpapi

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// execAnswer is the result of a program on its way to the client. Its JSON is
// that of [rest.ExecResult], but the output, which a program can make as large
// as its limit, is turned into it piece by piece: as a whole it would take
// several times its size.
type execAnswer struct{ res sandbox.ExecResult }

// outputPiece is how much output is turned into JSON at a time, in bytes.
const outputPiece = 32 << 10

// emptyOutputs is how the JSON of a result begins that has no output.
const emptyOutputs = `{"stdout":"","stderr":""`

// writeTo writes the result as JSON.
func (a execAnswer) writeTo(w io.Writer) error {
	rest, err := marshal(rest.ExecResult{
		StdoutTruncated: a.res.StdoutTruncated,
		StderrTruncated: a.res.StderrTruncated,

		ExitCode:   a.res.ExitCode,
		DurationMS: a.res.Duration.Milliseconds(),
		DurationUS: a.res.Duration.Microseconds(),
		Start:      rest.StartName(a.res.Warm),
		LimitsHit:  a.res.Hit.Names(),
		Error:      a.res.Err,
		ExecID:     string(a.res.ID),

		EgressDenied: describeDenials(a.res.EgressDenied),
	})
	if err != nil {
		return err
	}
	for _, part := range []struct {
		before string
		write  func(io.Writer, []byte) error
		output []byte
		when   bool
	}{
		{`{"stdout":"`, writeText, a.res.Stdout, true},
		{`","stderr":"`, writeText, a.res.Stderr, true},
		{`","stdout_base64":"`, writeBase64, a.res.Stdout, !utf8.Valid(a.res.Stdout)},
		{`","stderr_base64":"`, writeBase64, a.res.Stderr, !utf8.Valid(a.res.Stderr)},
	} {
		if !part.when {
			continue
		}
		if _, err := io.WriteString(w, part.before); err != nil {
			return err
		}
		if err := part.write(w, part.output); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(w, `"`); err != nil {
		return err
	}
	_, err = w.Write(bytes.TrimPrefix(rest, []byte(emptyOutputs)))
	return err
}

// writeText writes what is between the quotes of a JSON string. Each byte that
// is not UTF-8 becomes a U+FFFD.
func writeText(w io.Writer, b []byte) error {
	var text []byte
	for len(b) > 0 {
		n := min(len(b), outputPiece)
		if n < len(b) {
			n = wholeRunes(b[:n])
		}
		text = appendText(text[:0], b[:n])
		if _, err := w.Write(text); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// appendText escapes what encoding/json escapes.
func appendText(text, b []byte) []byte {
	const hex = "0123456789abcdef"
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		switch r {
		case utf8.RuneError:
			text = utf8.AppendRune(text, r)
		case '"', '\\':
			text = append(text, '\\', b[0])
		case '\b':
			text = append(text, `\b`...)
		case '\f':
			text = append(text, `\f`...)
		case '\n':
			text = append(text, `\n`...)
		case '\r':
			text = append(text, `\r`...)
		case '\t':
			text = append(text, `\t`...)
		case '\u2028', '\u2029': // they end a line in JavaScript
			text = append(text, `\u202`...)
			text = append(text, hex[r&0xf])
		default:
			if r < ' ' {
				text = append(text, '\\', 'u', '0', '0', hex[r>>4], hex[r&0xf])
			} else {
				text = append(text, b[:size]...)
			}
		}
		b = b[size:]
	}
	return text
}

// wholeRunes is how many bytes of p there are before a character that goes on
// after it.
func wholeRunes(p []byte) int {
	for back := range min(utf8.UTFMax, len(p)) {
		n := len(p) - back - 1
		if utf8.RuneStart(p[n]) {
			if utf8.FullRune(p[n:]) {
				break
			}
			return n
		}
	}
	return len(p)
}

func writeBase64(w io.Writer, b []byte) error {
	pieces := bufio.NewWriterSize(w, outputPiece)
	enc := base64.NewEncoder(base64.StdEncoding, pieces)
	if _, err := enc.Write(b); err != nil {
		return err
	}
	return errors.Join(enc.Close(), pieces.Flush())
}

// marshal is v as JSON, and a line break.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}
