package rest

import "time"

// Event is one thing that happened to a sandbox.
type Event struct {
	ID           string    `json:"id" example:"5f3a9c01-17" doc:"Names the event; what follows it can be asked for with after, or Last-Event-ID."`
	Seq          uint64    `json:"seq" example:"17" doc:"Counts the events of one daemon, without a gap."`
	Time         time.Time `json:"time" doc:"When it happened."`
	Event        string    `json:"event" enum:"created,ready,failed,exec,oom,egress_denied,adopted,expired,lost,deleted" example:"exec" doc:"What happened: the sandbox was asked for, took programs, could not be made, ran a program to its end, had no memory left, was refused to reach something, was taken over from an earlier daemon; or nothing is left of it because its time was over, of a fault, or because somebody wished so."`
	SandboxID    string    `json:"sandbox_id" example:"sb_a1b2c3d4e5f6" doc:"The sandbox."`
	LanguagePack string    `json:"language_pack" example:"python" doc:"Its pack."`
	BootPath     string    `json:"boot_path,omitempty" enum:"cold-boot,restore,pool" example:"pool" doc:"How its microVM came to be, as far as that is known."`
	Reason       string    `json:"reason,omitempty" example:"ok" doc:"Why, or how it ended: a word for programs."`
	DurationMS   int64     `json:"duration_ms,omitempty" example:"13" doc:"How long it took whoever asked: to be ready, to have the result; of an end, how old the sandbox was."`
	Start        string    `json:"start,omitempty" enum:"warm,cold" example:"warm" doc:"Of an exec, whether its interpreter was started ahead."`

	EgressDenied *EgressDenial `json:"egress_denied,omitempty" doc:"Of egress_denied, what was refused."`
}

// EventList is the events that a daemon keeps, oldest first.
type EventList struct {
	Events []Event `json:"events" nullable:"false"`
	Gap
}

// Gap says that events are missing before those that follow. In a stream it is an
// event of its own, called gap.
type Gap struct {
	Missed    uint64 `json:"missed,omitempty" example:"12" doc:"How many events are gone, because more happened than the daemon keeps."`
	Restarted bool   `json:"restarted,omitempty" doc:"The daemon was started again, so it is not known how many are gone."`
}
