package httpapi

import (
	"bytes"
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// whole is what [execAnswer] writes, made in one piece.
func whole(res sandbox.ExecResult) rest.ExecResult {
	out := rest.ExecResult{
		StdoutTruncated: res.StdoutTruncated, StderrTruncated: res.StderrTruncated, ExitCode: res.ExitCode,
		DurationMS: res.Duration.Milliseconds(), DurationUS: res.Duration.Microseconds(), Start: rest.StartName(res.Warm), Error: res.Err, ExecID: string(res.ID),
	}
	out.Stdout, out.StdoutBase64 = rest.EncodeOutput(res.Stdout)
	out.Stderr, out.StderrBase64 = rest.EncodeOutput(res.Stderr)
	return out
}

func checkAnswer(t *testing.T, res sandbox.ExecResult) {
	t.Helper()
	var b bytes.Buffer
	if err := (execAnswer{res}).writeTo(&b); err != nil {
		t.Fatal(err)
	}
	var got rest.ExecResult
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v in %.200q", err, b.Bytes())
	}
	if want := whole(res); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+.200v, want %+.200v", got, want)
	}
}

func TestExecAnswer(t *testing.T) {
	long := strings.Repeat("日本 <&>\"\\\n", 3*outputPiece/10)
	for _, out := range []string{"", "42\n", "\x00\x1b[2J\u2028", long, "x" + long, "xx" + long, long + "\xe6\x97", "\xff" + long, strings.Repeat("\xe6", 2*outputPiece)} {
		checkAnswer(t, sandbox.ExecResult{Stdout: []byte(out), ID: "ex_0123456789ab", ExitCode: 3, Duration: 13021 * time.Microsecond})
		checkAnswer(t, sandbox.ExecResult{Stderr: []byte(out), StderrTruncated: true, ExitCode: -1, Err: "execution timed out"})
	}
}

func FuzzExecAnswer(f *testing.F) {
	f.Add([]byte("a\xff日"), []byte("\x00"), uint8(3))
	f.Fuzz(func(t *testing.T, stdout, stderr []byte, shift uint8) {
		// The edge of a piece falls into the fuzzer's bytes.
		stdout = append(bytes.Repeat([]byte("x"), outputPiece-int(shift)%8), stdout...)
		checkAnswer(t, sandbox.ExecResult{Stdout: stdout, Stderr: stderr})
	})
}

// discard is a client that takes everything and keeps nothing.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// However large the output, turning it into JSON takes little memory.
func TestExecAnswerIsSmall(t *testing.T) {
	for _, b := range []string{"\xff", "x", "\x00"} {
		res := sandbox.ExecResult{Stdout: bytes.Repeat([]byte(b), 2<<20)}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := (execAnswer{res}).writeTo(discard{}); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
			t.Errorf("2 MiB of %q: %d KiB of memory were used", b, used>>10)
		}
	}
}
