package sandbox

import (
	"strings"
	"time"
)

// execPrefix begins the id of every program; idHexLen hex digits follow.
const execPrefix = "ex_"

// ExecID names one program that was run in a sandbox.
type ExecID string

// NewExecID returns a fresh random id, "ex_" and 12 hex digits.
func NewExecID() ExecID {
	return ExecID(execPrefix + strings.TrimPrefix(string(NewID()), idPrefix))
}

// ParseExecID accepts exactly what [NewExecID] makes. Anything else is
// [ErrExecNotFound], since it cannot name a program.
func ParseExecID(s string) (ExecID, error) {
	rest, ok := strings.CutPrefix(s, execPrefix)
	if !ok || len(rest) != idHexLen || strings.Trim(rest, "0123456789abcdef") != "" {
		return "", ErrExecNotFound
	}
	return ExecID(s), nil
}

// ExecRequest is one program to run in a sandbox.
type ExecRequest struct {
	// Code is source text for the pack's interpreter. It may hold any bytes but
	// NUL.
	Code string
	// Stdin is given to the program byte for byte and then ends.
	Stdin []byte
	// Timeout is a wall-clock limit; zero means that of the sandbox.
	Timeout time.Duration
	// StdinOpen has the input go on after Stdin, for a program that is started
	// without a wait.
	StdinOpen bool
	// Once, unless it is zero, has the program started once.
	Once Once
}

// ExecResult tells how a program ended. There is a result only when that is
// known; everything else is an error.
type ExecResult struct {
	// ID is the program's, for as long as the guest remembers it.
	ID             ExecID
	Stdout, Stderr []byte
	// StdoutTruncated and StderrTruncated say that the program wrote more than
	// the result carries.
	StdoutTruncated, StderrTruncated bool
	// ExitCode is the program's status, 128+n when signal n ended it, and -1
	// when Err is set.
	ExitCode int
	// Warm says that the program ran in an interpreter that was started ahead.
	Warm     bool
	Duration time.Duration
	// Err is set when there is no exit code to report: [ErrTextTimedOut], or
	// why the interpreter could not be started.
	Err string
	// Hit is which of the sandbox's limits the program ran into.
	Hit LimitsHit
	// EgressDenied is what was refused to the sandbox while the program ran.
	EgressDenied []EgressDenial
}

// Exec is what the guest knows of a program that runs or has ended.
type Exec struct {
	ID        ExecID
	StartedAt time.Time
	// Result is how it ended, without output; nil while it runs.
	Result *ExecResult
	// Stdout and Stderr are which of the output is there.
	Stdout, Stderr Span
	// StdinBytes is how much input it was given, and StdinOpen tells whether it
	// may be given more.
	StdinBytes int64
	StdinOpen  bool
	// EgressDenied is what was refused to the sandbox while the program ran, as far
	// as this daemon saw it run.
	EgressDenied []EgressDenial
}

// Span is the part of a stream from First up to, and without, End.
type Span struct{ First, End int64 }

// OutputRequest is the output of a program that somebody wants to read.
type OutputRequest struct {
	Stderr bool // rather than standard output
	// Offset is the position of the first byte.
	Offset int64
	// Follow goes on with what the program will write.
	Follow bool
}

// Signal is a signal that can be sent to a program.
type Signal int

// signals are the names of signals, and their numbers on Linux.
var signals = []struct {
	name   string
	number Signal
}{
	{"HUP", 1}, {"INT", 2}, {"QUIT", 3}, {"KILL", 9}, {"USR1", 10}, {"USR2", 12}, {"TERM", 15}, {"CONT", 18}, {"STOP", 19},
}

// ParseSignal accepts the name of a signal without SIG.
func ParseSignal(name string) (Signal, error) {
	var names []string
	for _, s := range signals {
		if s.name == name {
			return s.number, nil
		}
		names = append(names, s.name)
	}
	return 0, Invalid("signal is %q; it can be %s", name, strings.Join(names, ", "))
}

// ErrTextTimedOut is [ExecResult].Err of a program that was killed at its limit.
const ErrTextTimedOut = "execution timed out"
