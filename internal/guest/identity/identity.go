// Package identity makes a VM one of its own. A VM that was restored from a
// snapshot is in everything the twin of each other one: the same random numbers
// are about to come, it has the same names, and its clock stands where it was.
//
// The one idea is an order of steps, kept as a list: the randomness comes first,
// so that whatever is made up later differs, and the limits last, which only
// matter to programs. A step that fails ends it, and a VM that was armed by
// half must not run a program; whoever calls sees to that. Taking an identity
// again replaces all of the one before. The package knows no frames and starts
// no process.
package identity

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
)

// Bounds of what the host may ask for. They are wider than anything that it
// should: they keep a mistake from becoming half an identity.
const (
	minEntropy, maxEntropy = 64, 512
	idBytes                = 16
	maxDiskMiB             = 1 << 20
	maxPIDs                = 1 << 22 // the kernel's own
)

var validHostname = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// earliest is a time before which no VM of emberd's was ever started.
var earliest = time.Date(2025, time.January, 1, 0, 0, 0, 0, time.UTC).UnixNano()

// A step changes one thing that makes a VM differ from its twins.
type step struct {
	name string
	take func(*agentv1.Arm) error
}

// Taker gives the VM that this process runs in its identities. One goroutine
// may use it at a time.
type Taker struct {
	system *system
	steps  []step
}

// New returns a Taker for the system that package boot has made.
func New() *Taker {
	s := &system{root: "/"}
	return &Taker{s, []step{
		{"reseed the random number generator", s.reseed},
		{"set the clock", s.setClock},
		{"set the host name", s.setHostname},
		{"write the machine id", s.writeMachineID},
		{"replace the boot id", s.replaceBootID},
		{"configure the network", s.configureNetwork},
		{"limit what is written", s.limitDisk},
		{"limit processes", s.limitProcesses},
	}}
}

// Prepare does ahead what takes longest of an identity: the files that it is
// written to are made, and mounted. In a VM that was restored from a snapshot Take
// finds that done.
func (t *Taker) Prepare() error {
	nobody := make([]byte, idBytes)
	return errors.Join(
		t.system.nameHost("sandbox"),
		t.system.writeMachineID(&agentv1.Arm{MachineId: nobody}),
		t.system.replaceBootID(&agentv1.Arm{BootId: nobody}),
	)
}

// Take makes id the VM's identity. An error means that it has half of it.
func (t *Taker) Take(id *agentv1.Arm) error {
	if err := check(id); err != nil {
		return err
	}
	for _, s := range t.steps {
		if err := s.take(id); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func check(id *agentv1.Arm) error {
	switch {
	case len(id.GetEntropy()) < minEntropy || len(id.GetEntropy()) > maxEntropy:
		return fmt.Errorf("%d bytes of entropy", len(id.GetEntropy()))
	case id.GetClockUnixNs() < earliest:
		return fmt.Errorf("a clock at %v", time.Unix(0, id.GetClockUnixNs()).UTC())
	case !validHostname.MatchString(id.GetHostname()):
		return fmt.Errorf("the host name %q", id.GetHostname())
	case len(id.GetMachineId()) != idBytes:
		return fmt.Errorf("a machine id of %d bytes", len(id.GetMachineId()))
	case len(id.GetBootId()) != idBytes:
		return fmt.Errorf("a boot id of %d bytes", len(id.GetBootId()))
	case id.GetDiskMib() < 1 || id.GetDiskMib() > maxDiskMiB:
		return fmt.Errorf("a limit of %d MiB for files", id.GetDiskMib())
	case id.GetPids() < 1 || id.GetPids() > maxPIDs:
		return fmt.Errorf("a limit of %d processes", id.GetPids())
	}
	return checkNetwork(id.GetNetwork())
}
