// Package rest defines emberd's HTTP API: the JSON that daemon and clients
// exchange.
//
// The one idea is a single definition: the daemon decodes into these types, the
// Go client encodes them, and the published OpenAPI document is generated from
// their tags. The package only describes; it knows no HTTP and depends on
// the standard library alone. Fields are added, never renamed or given another meaning.
package rest

import (
	"time"
	"unicode/utf8"
)

// What the daemon accepts at most in the body of a request, in bytes.
const (
	MaxSmallBody = 4 << 10 // of what has no limit of its own, a create among them
	MaxExecBody  = 1 << 20
)

// OnceHeader names a request that makes or starts something, so that it is carried
// out once however often it is sent.
const OnceHeader = "Idempotency-Key"

// CreateRequest asks for a new sandbox. An empty body asks for the default pack
// and the default limits.
type CreateRequest struct {
	LanguagePack string `json:"language_pack,omitempty" default:"python" example:"python" doc:"The language pack to boot: its root filesystem and interpreter."`
	Limits
	BootPath string `json:"boot_path,omitempty" enum:"cold-boot,restore,pool" example:"cold-boot" doc:"The one way that the microVM may come to be. Where none is to be had that way, the answer is 503. Absent asks for the fastest there is."`

	Egress *EgressRequest `json:"egress,omitempty" doc:"What the sandbox may reach. Absent gives it no network interface at all."`
}

// CreateResponse names the sandbox that was made.
type CreateResponse struct {
	ID string `json:"id" pattern:"^sb_[0-9a-f]{12}$" example:"sb_a1b2c3d4e5f6" doc:"The sandbox's id. Ids are never reused."`
}

// Sandbox describes one sandbox.
type Sandbox struct {
	ID           string    `json:"id" pattern:"^sb_[0-9a-f]{12}$" example:"sb_a1b2c3d4e5f6" doc:"The sandbox's id."`
	LanguagePack string    `json:"language_pack" example:"python" doc:"The pack it was made from."`
	State        string    `json:"state" enum:"creating,running,deleting" example:"running" doc:"Where it stands in its life. Only a running sandbox takes programs."`
	GuestVCPUs   int       `json:"guest_vcpus" example:"1" doc:"Virtual CPUs of its microVM."`
	GuestRAMMiB  int       `json:"guest_ram_mib" example:"256" doc:"Memory of its microVM in MiB."`
	BootPath     string    `json:"boot_path" enum:"cold-boot,restore,pool" example:"pool" doc:"How its microVM came to be: booted or restored from a template when it was asked for, or ready before that."`
	CreatedAt    time.Time `json:"created_at" doc:"When it was asked for."`

	Limits        Limits    `json:"limits" doc:"What it may use."`
	ExpiresAt     time.Time `json:"expires_at" doc:"When it is deleted because its lifetime is over."`
	IdleExpiresAt time.Time `json:"idle_expires_at,omitzero" doc:"When it is deleted if no program is run until then. Absent while one runs."`

	Egress *Egress `json:"egress,omitempty" doc:"What it may reach. Absent if it has no network interface."`
}

// SandboxList is every sandbox there is, oldest first.
type SandboxList struct {
	Sandboxes []Sandbox `json:"sandboxes" nullable:"false"`
}

// ExecRequest asks to run one program in a sandbox and wait for its end.
type ExecRequest struct {
	Code        string `json:"code" pattern:"^[^\\x00]*$" example:"print(6*7)" doc:"Source text for the pack's interpreter. It must not contain NUL."`
	Stdin       string `json:"stdin,omitempty" doc:"What the program reads on standard input before it ends."`
	StdinBase64 []byte `json:"stdin_base64,omitempty" pattern:"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$" doc:"The same for bytes that are not text, base64. Give one of the two."`
	TimeoutMS   int64  `json:"timeout_ms,omitempty" minimum:"0" example:"5000" doc:"Wall-clock limit in milliseconds, after which the program and everything it started are killed. At most the sandbox's exec_timeout_s, which is what 0 means too."`
}

// ExecResult tells how a program ended. A program that fails is a result too;
// there is none only when it is not known how the program ended.
type ExecResult struct {
	Stdout          string   `json:"stdout" example:"42\n" doc:"What the program wrote to standard output. Bytes that are not UTF-8 appear as U+FFFD."`
	Stderr          string   `json:"stderr" example:"" doc:"What the program wrote to standard error, likewise."`
	StdoutBase64    []byte   `json:"stdout_base64,omitempty" doc:"The exact bytes of standard output, base64; only present when they are not UTF-8."`
	StderrBase64    []byte   `json:"stderr_base64,omitempty" doc:"The exact bytes of standard error, base64; only present when they are not UTF-8."`
	StdoutTruncated bool     `json:"stdout_truncated,omitempty" doc:"True when standard output is only the beginning of what the program wrote; the rest was read and dropped. Absent otherwise."`
	StderrTruncated bool     `json:"stderr_truncated,omitempty" doc:"True when standard error is only the beginning of what the program wrote; the rest was read and dropped. Absent otherwise."`
	ExitCode        int      `json:"exit_code" example:"0" doc:"The program's exit status; 128+n when signal n ended it; -1 when error is set."`
	DurationMS      int64    `json:"duration_ms" example:"13" doc:"How long the program ran, in whole milliseconds."`
	DurationUS      int64    `json:"duration_us" example:"13021" doc:"How long the program ran, in microseconds."`
	Start           string   `json:"start" enum:"warm,cold" example:"warm" doc:"Whether the program ran in an interpreter that was started ahead of it, as a fresh process of its own, or in one that was started for it."`
	LimitsHit       []string `json:"limits_hit,omitempty" nullable:"false" enum:"memory_mib,disk_mib,pids" doc:"Which of the sandbox's limits the program, or one that it started, ran into, as the guest tells: a process was killed or not made for want of memory, the program failed when no more could be written to files, or there was one process or thread too many. Absent when there are none."`
	Error           string   `json:"error,omitempty" example:"execution timed out" doc:"Why there is no exit status: the time limit, or an interpreter that could not be started. Absent otherwise."`

	EgressDenied []EgressDenial `json:"egress_denied,omitempty" nullable:"false" doc:"What was refused to the sandbox while the program ran, and the rule that would have allowed it. Absent when nothing was."`

	ExecID string `json:"exec_id" pattern:"^ex_[0-9a-f]{12}$" example:"ex_0123456789ab" doc:"The program's id, by which it can be asked for again for some time."`
}

// Info describes the daemon.
type Info struct {
	GuestRAMMiB int         `json:"guest_ram_mib" example:"256" doc:"Memory of each sandbox's microVM in MiB."`
	GuestVCPUs  int         `json:"guest_vcpus" example:"1" doc:"Virtual CPUs of each sandbox's microVM."`
	BootPath    string      `json:"boot_path" enum:"cold-boot,restore,pool" example:"pool" doc:"The fastest way for microVMs to come to be. Each sandbox says which one its own took."`
	Packs       []string    `json:"packs" nullable:"false" example:"[\"python\",\"shell\"]" doc:"The language packs that can be asked for."`
	WorkDir     string      `json:"work_dir" example:"/var/lib/emberd" doc:"Where the daemon keeps its data."`
	Pool        []PoolStock `json:"pool" nullable:"false" doc:"The microVMs that are kept ready."`
	KVM         string      `json:"kvm" enum:"hardware,emulated" example:"hardware" doc:"Whether microVMs run on the processor's virtualisation or on an emulation of it. An emulation is no security boundary."`
	Egress      bool        `json:"egress" doc:"Whether a sandbox can be given a network interface."`
	Versions    Versions    `json:"versions" doc:"What the daemon is made of."`
}

// Versions names the versions of what a daemon is made of.
type Versions struct {
	Emberd      string `json:"emberd" example:"0.1.0"`
	Firecracker string `json:"firecracker" example:"1.12.1"`
	HostKernel  string `json:"host_kernel" example:"6.1.0"`
}

// Status is the answer of the health and readiness probes.
type Status struct {
	Status string `json:"status" enum:"ok,ready" example:"ok"`
}

// Error is the body of every answer that is not a success.
type Error struct {
	Message string `json:"error" example:"sandbox not found" doc:"What went wrong, for people."`
	Code    string `json:"code" enum:"invalid_request,unknown_pack,unauthorized,forbidden,not_found,too_large,quota_exceeded,rate_limited,key_reused,no_capacity,disk_full,boot_failed,sandbox_lost,starting_up,shutting_down,exec_ended,output_gone,no_egress,egress_unavailable,canceled,internal" example:"not_found" doc:"What went wrong, for programs."`

	FirstOffset int64 `json:"first_offset,omitempty" example:"4096" doc:"With output_gone, the position from which on there is output. Absent otherwise."`
}

// StartName is how an [ExecResult] says whether the interpreter was warm.
func StartName(warm bool) string {
	if warm {
		return "warm"
	}
	return "cold"
}

// EncodeOutput returns the bytes of an output stream as an [ExecResult] carries
// them: as text, and also raw when text cannot hold them.
func EncodeOutput(b []byte) (text string, raw []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return string([]rune(string(b))), b // a U+FFFD for each wrong byte
}

// DecodeOutput undoes [EncodeOutput].
func DecodeOutput(text string, raw []byte) []byte {
	if len(raw) > 0 {
		return raw
	}
	return []byte(text)
}
