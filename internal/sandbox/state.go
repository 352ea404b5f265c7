package sandbox

import (
	"fmt"
	"slices"
)

// State is where a sandbox stands in its life.
type State string

// The states, in the order they are usually passed through.
const (
	Creating State = "creating"
	Running  State = "running"
	Deleting State = "deleting"
	Gone     State = "gone"
)

// next is the whole life of a sandbox: the states that may follow each one.
var next = map[State][]State{
	Creating: {Running, Deleting},
	Running:  {Deleting},
	Deleting: {Gone},
	Gone:     {},
}

// To returns the state to after s. It panics when the table does not know the
// step: callers check what a client may ask for before they get here, so an
// impossible step is a bug in emberd.
func (s State) To(to State) State {
	if !slices.Contains(next[s], to) {
		panic(fmt.Sprintf("sandbox: impossible step from %q to %q", s, to))
	}
	return to
}
