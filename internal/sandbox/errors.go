package sandbox

import (
	"errors"
	"fmt"
	"syscall"
)

// Code is the class of an error, stable for programs to act on.
type Code string

// The closed set of codes.
const (
	CodeInvalid      Code = "invalid_request"
	CodeUnauthorized Code = "unauthorized" // no API key, or none that is valid
	CodeForbidden    Code = "forbidden"    // not from there, whoever asks
	CodeUnknownPack  Code = "unknown_pack"
	CodeNotFound     Code = "not_found"
	CodeTooLarge     Code = "too_large"
	CodeQuota        Code = "quota_exceeded"
	CodeRate         Code = "rate_limited" // too many requests with one API key
	CodeKeyReused    Code = "key_reused"   // an Idempotency-Key, for another request
	CodeCapacity     Code = "no_capacity"
	CodeDiskFull     Code = "disk_full"
	CodeBoot         Code = "boot_failed"
	CodeEgress       Code = "egress_unavailable" // no network interface is to be had
	CodeLost         Code = "sandbox_lost"
	CodeStarting     Code = "starting_up"
	CodeClosing      Code = "shutting_down"
	CodeEnded        Code = "exec_ended"  // the program has, or its input
	CodeOutputGone   Code = "output_gone" // too old to be kept
	CodeNoEgress     Code = "no_egress"   // the sandbox is without, or emberd gives none
	CodeCanceled     Code = "canceled"
	CodeInternal     Code = "internal"
)

// Error is an error meant for the client: its message names no path, address
// or identity of the host. The cause, if there is one, is for the log.
type Error struct {
	Code    Code
	Message string
	Cause   error
	// FirstOffset is, with [CodeOutputGone], from where on there is output.
	FirstOffset int64
}

// The errors that callers compare against with [errors.Is], which matches by
// code.
var (
	ErrUnknownPack  = &Error{Code: CodeUnknownPack, Message: "unknown language pack"}
	ErrNotFound     = &Error{Code: CodeNotFound, Message: "sandbox not found"}
	ErrExecNotFound = &Error{Code: CodeNotFound, Message: "exec not found"}
	ErrExecEnded    = &Error{Code: CodeEnded, Message: "the program has ended, or its input has"}
	ErrQuota        = &Error{Code: CodeQuota, Message: "too many at a time"}
	ErrKeyReused    = &Error{Code: CodeKeyReused, Message: "the Idempotency-Key was used for another request"}
	ErrCapacity     = &Error{Code: CodeCapacity, Message: "the host has no room for another microVM"}
	ErrDiskFull     = &Error{Code: CodeDiskFull, Message: "the host has no room on its disk"}
	ErrBoot         = &Error{Code: CodeBoot, Message: "the microVM did not become ready"}
	ErrEgress       = &Error{Code: CodeEgress, Message: "the sandbox cannot have a network interface"}
	ErrNoEgress     = &Error{Code: CodeNoEgress, Message: "the sandbox was made without egress, and so has no network interface; make one with egress"}
	ErrLost         = &Error{Code: CodeLost, Message: "the microVM ended while the program ran; its exit code is unknown"}
	ErrStarting     = &Error{Code: CodeStarting, Message: "emberd is starting, and looks after the sandboxes that it finds"}
	ErrClosing      = &Error{Code: CodeClosing, Message: "emberd is shutting down"}
)

// Error returns the message and, for the log, the cause.
func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Message
	}
	return e.Message + ": " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is reports whether target is an [Error] of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Because returns e with a cause for the log.
func (e *Error) Because(cause error) *Error {
	return &Error{Code: e.Code, Message: e.Message, Cause: cause}
}

// Invalid is an error in what a client sent.
func Invalid(format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Message: fmt.Sprintf(format, args...)}
}

// OutputGone is an error for output that is too old to be kept.
func OutputGone(first int64) *Error {
	return &Error{
		Code: CodeOutputGone, FirstOffset: first,
		Message: fmt.Sprintf("the output before byte %d is no longer kept", first),
	}
}

// OverQuota is [ErrQuota] with what there are too many of.
func OverQuota(format string, args ...any) *Error {
	return &Error{Code: CodeQuota, Message: fmt.Sprintf(format, args...)}
}

// OverCapacity is [ErrCapacity] with what the host has too little of.
func OverCapacity(format string, args ...any) *Error {
	return &Error{Code: CodeCapacity, Message: fmt.Sprintf(format, args...)}
}

// NoEgress is [ErrNoEgress] for a sandbox that cannot be given an interface, and
// why.
func NoEgress(format string, args ...any) *Error {
	return &Error{Code: CodeNoEgress, Message: fmt.Sprintf(format, args...)}
}

// NoBootPath is [ErrCapacity] for a request that insists on path, and why there
// is no microVM to be had that way.
func NoBootPath(path BootPath, why string) *Error {
	return OverCapacity("boot_path is %q, but %s", path, why)
}

// EgressUnavailable is [ErrEgress] with why, and what to do about it.
func EgressUnavailable(why string) *Error {
	return &Error{Code: CodeEgress, Message: ErrEgress.Message + ": " + why}
}

// UnknownPack is [ErrUnknownPack] for the pack called name.
func UnknownPack(name string) *Error {
	return &Error{Code: CodeUnknownPack, Message: fmt.Sprintf("%s: %q", ErrUnknownPack.Message, name)}
}

// Public returns what a client may be told about err: its code, and its message
// without the cause. Whatever a full disk was the cause of is told as that. An
// error that is no [Error] is internal and says nothing.
func Public(err error) (Code, string) {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return ErrDiskFull.Code, ErrDiskFull.Message
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code, e.Message
	}
	return CodeInternal, "internal error"
}
