package rest

import "time"

// MaxStdinBody is how much input a request can give a program that runs, in bytes.
const MaxStdinBody = 1 << 20

// OffsetHeader names the position of the first byte of an answer with output.
const OffsetHeader = "Emberd-Offset"

// StartRequest asks to start one program in a sandbox.
type StartRequest struct {
	ExecRequest
	StdinOpen bool `json:"stdin_open,omitempty" doc:"Whether the program's standard input stays open after stdin, for more of it to be sent. Else it ends there."`
}

// StartResponse names a program that was started.
type StartResponse struct {
	ExecID string `json:"exec_id" pattern:"^ex_[0-9a-f]{12}$" example:"ex_0123456789ab" doc:"The program's id."`
}

// Exec describes a program that was run in a sandbox. How it ended is there once
// it has: exit_code and what follows are absent as long as it runs.
type Exec struct {
	ExecID     string    `json:"exec_id" pattern:"^ex_[0-9a-f]{12}$" example:"ex_0123456789ab" doc:"The program's id."`
	State      string    `json:"state" enum:"running,exited" example:"exited" doc:"Whether the program runs, or has ended."`
	StartedAt  time.Time `json:"started_at" doc:"When it was started, as the guest tells."`
	Stdout     Span      `json:"stdout" doc:"Which bytes of standard output are there."`
	Stderr     Span      `json:"stderr" doc:"Which bytes of standard error are there."`
	StdinBytes int64     `json:"stdin_bytes" example:"0" doc:"How many bytes of input the program was given."`
	StdinOpen  bool      `json:"stdin_open" doc:"Whether it may be given more."`

	ExitCode   *int     `json:"exit_code,omitempty" example:"0" doc:"The program's exit status; 128+n when signal n ended it; -1 when error is set."`
	DurationMS *int64   `json:"duration_ms,omitempty" example:"13" doc:"How long the program ran, in whole milliseconds."`
	DurationUS *int64   `json:"duration_us,omitempty" example:"13021" doc:"How long the program ran, in microseconds."`
	Start      string   `json:"start,omitempty" enum:"warm,cold" example:"warm" doc:"Whether the program ran in an interpreter that was started ahead of it, or in one that was started for it."`
	LimitsHit  []string `json:"limits_hit,omitempty" nullable:"false" enum:"memory_mib,disk_mib,pids" doc:"Which of the sandbox's limits the program ran into, as in the result of an exec."`
	Error      string   `json:"error,omitempty" example:"execution timed out" doc:"Why there is no exit status: the time limit, or an interpreter that could not be started. Absent otherwise."`

	EgressDenied []EgressDenial `json:"egress_denied,omitempty" nullable:"false" doc:"What was refused to the sandbox while the program ran, so far, and as this daemon saw it run. Absent when nothing was."`
}

// Span is the part of a stream that is there.
type Span struct {
	FirstOffset int64 `json:"first_offset" example:"0" doc:"The position of the oldest byte that is kept."`
	EndOffset   int64 `json:"end_offset" example:"42" doc:"How many bytes were written, which is the position of the next one."`
}

// ExecList is the programs that the guest of a sandbox remembers, in the order of
// their starts.
type ExecList struct {
	Execs []Exec `json:"execs" nullable:"false"`
}

// SignalRequest asks for a signal to a program.
type SignalRequest struct {
	Signal string `json:"signal" enum:"HUP,INT,QUIT,KILL,USR1,USR2,TERM,CONT,STOP" example:"TERM" doc:"The signal's name. KILL ends everything that the program started; others go to its process group, as from a terminal."`
}
