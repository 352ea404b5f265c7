package sandbox

import "time"

// EventKind is what happened to a sandbox.
type EventKind string

// The closed set of kinds.
const (
	// EventCreated is a sandbox that was asked for and has been promised room.
	EventCreated EventKind = "created"
	// EventReady is one that takes programs from now on.
	EventReady EventKind = "ready"
	// EventFailed is one that could not be made; nothing is left of it.
	EventFailed EventKind = "failed"
	// EventExec is a program's end.
	EventExec EventKind = "exec"
	// EventOOM is a program that had no memory left, or a VMM that the host's OOM
	// killer ended.
	EventOOM EventKind = "oom"
	// EventEgressDenied is something that a sandbox wanted to reach and may not.
	EventEgressDenied EventKind = "egress_denied"
	// EventAdopted is a sandbox that an earlier daemon made and this one goes on
	// with.
	EventAdopted EventKind = "adopted"
	// EventExpired, EventLost and EventDeleted are a sandbox's end, when nothing is
	// left of it: by a deadline, by a fault, or by somebody's wish.
	EventExpired EventKind = "expired"
	EventLost    EventKind = "lost"
	EventDeleted EventKind = "deleted"
	// EventRejected is a request for a sandbox that there was no room for. There is
	// no sandbox that it is about.
	EventRejected EventKind = "rejected"
)

// Event is one thing that happened. It says nothing of who asked for it, and
// carries neither code nor output.
type Event struct {
	Kind    EventKind
	Sandbox ID
	Pack    string
	// BootPath is how the microVM came to be, empty as long as that is not known.
	BootPath BootPath
	// Reason is why, or how it ended: a word out of a small set, so that it can be
	// counted by.
	Reason string
	// Took is how long it took whoever asked.
	Took time.Duration
	// Ran is how long a program ran, and Warm says that its interpreter was started
	// ahead. Both are known only of an exec that has a result.
	Ran  time.Duration
	Warm bool
	// Denied is what was refused, and how often since it was last told; nil unless
	// the event is that.
	Denied *EgressDenial
	// CountOnly says that the event is to be counted and not to be kept, as there
	// were others like it.
	CountOnly bool
}

// Load is one sandbox in any state, and how many programs run in it.
type Load struct {
	Sandbox
	Execs int
}
