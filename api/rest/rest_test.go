package rest

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// FuzzOutput checks that JSON loses no byte of a program's output, and that raw
// bytes are sent only when text would.
func FuzzOutput(f *testing.F) {
	for _, s := range []string{"", "42\n", "grüße", "\ufffd", "\xff", "a\x00b", "\xed\xa0\x80", "<&>\u2028"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		var res ExecResult
		res.Stdout, res.StdoutBase64 = EncodeOutput(out)
		if !utf8.ValidString(res.Stdout) || (res.StdoutBase64 == nil) != utf8.Valid(out) {
			t.Fatalf("%q is sent as %q and %q", out, res.Stdout, res.StdoutBase64)
		}
		wire, err := json.Marshal(res)
		if err != nil {
			t.Fatal(err)
		}
		var back ExecResult
		if err := json.Unmarshal(wire, &back); err != nil {
			t.Fatal(err)
		}
		if got := DecodeOutput(back.Stdout, back.StdoutBase64); !bytes.Equal(got, out) {
			t.Fatalf("%q arrives as %q", out, got)
		}
	})
}
