package daemontest

import (
	"slices"

	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/jail"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/store"
)

// Reach is what a daemon is asked for to have it come to a step.
type Reach string

// What there is to ask for.
const (
	Boot    Reach = "boot"    // a sandbox whose microVM is booted
	Restore Reach = "restore" // one whose microVM is restored
	Build   Reach = "build"   // a template
	Refill  Reach = "refill"  // a sandbox of the pool, which is refilled behind it
	Exec    Reach = "exec"    // a program
	Delete  Reach = "delete"  // the end of a sandbox
	Life    Reach = "life"    // a sandbox that is booted, and its end
	Network Reach = "network" // a sandbox with a network interface
	Egress  Reach = "egress"  // another policy for one
	Recover Reach = "recover" // nothing: it goes on with a sandbox when it begins
)

// Point is one fault point at one of its visits.
type Point struct {
	Name  string
	Reach Reach
	// Visit is which of the times that the daemon comes to the step, from 1 on.
	Visit int
}

// What the life of a sandbox takes of records: it is being made, its microVM is
// there, it runs, it is being deleted; and then both go.
const (
	recordsWritten = 4
	recordsRemoved = 2
)

// Points are all fault points that tests with a fake firecracker come to.
var Points = slices.Concat(
	points(Boot, engine.FaultPoints), points(Boot, provision.FaultPoints), points(Boot, firecracker.FaultPoints),
	points(Restore, provision.FaultPoints), points(Restore, firecracker.RestoreFaultPoints),
	points(Build, template.FaultPoints), points(Build, firecracker.SnapshotFaultPoints),
	points(Refill, pool.FaultPoints),
	points(Exec, []string{engine.FaultExec}),
	points(Delete, []string{engine.FaultDelete, engine.FaultClear}),
	visits(store.FaultWrite, recordsWritten), visits(store.FaultRename, recordsWritten), visits(store.FaultRemove, recordsRemoved),
	points(Network, firecracker.InterfaceFaultPoints), points(Egress, []string{engine.FaultEgress}),
	points(Recover, []string{engine.FaultRecover, provision.FaultAdopt, provision.FaultHello}),
)

// JailPoints and NetworkPoints are those of the jail and of network interfaces,
// which take real microVMs.
var (
	JailPoints    = points(Restore, jail.FaultPoints)
	NetworkPoints = points(Network, egress.FaultPoints)
)

func points(reach Reach, names []string) (all []Point) {
	for _, name := range names {
		all = append(all, Point{name, reach, 1})
	}
	return all
}

func visits(name string, n int) (all []Point) {
	for i := range n {
		all = append(all, Point{name, Life, i + 1})
	}
	return all
}
