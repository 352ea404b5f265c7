package sandbox

import (
	"fmt"
	"time"
)

// Limits is what one sandbox may use. In a request a zero means that the
// daemon's default applies; a sandbox that exists has no zero among them, so
// nothing is unlimited.
type Limits struct {
	Size `json:"size"`
	// DiskMiB is how much the sandbox may write. It is kept in the guest's
	// memory, and so has to leave room for programs there.
	DiskMiB int `json:"disk_mib"`
	// PIDs is how many processes and threads its programs may have together.
	PIDs int `json:"pids"`
	// Lifetime is how long it lives, from the request for it on.
	Lifetime time.Duration `json:"lifetime_ns"`
	// IdleTimeout is how long it lives while no program runs.
	IdleTimeout time.Duration `json:"idle_timeout_ns"`
	// ExecTimeout is how long one program may run.
	ExecTimeout time.Duration `json:"exec_timeout_ns"`
	// Execs is how many programs may run at a time.
	Execs int `json:"execs"`
	// OutputBytes is how much of each output stream a program's result carries.
	OutputBytes int `json:"output_bytes"`
}

// Policy is what a daemon grants: the limits of a sandbox that asks for none,
// and the most that one may ask for. Its disk sizes stay zero, as they follow
// from the memory: half of it by default, all but [GuestReserveMiB] at most.
type Policy struct {
	Default, Ceiling Limits
}

// DefaultPolicy is the policy of a daemon that was told nothing.
func DefaultPolicy() Policy {
	return Policy{
		Default: Limits{
			Size: DefaultSize, PIDs: 512,
			Lifetime: time.Hour, IdleTimeout: 30 * time.Minute, ExecTimeout: time.Hour,
			Execs: 16, OutputBytes: 16 << 20,
		},
		Ceiling: Limits{
			Size: Size{VCPUs: maxVCPUs, MemoryMiB: 32 << 10}, PIDs: 16 << 10,
			Lifetime: 24 * time.Hour, IdleTimeout: 24 * time.Hour, ExecTimeout: 24 * time.Hour,
			Execs: 64, OutputBytes: 16 << 20,
		},
	}
}

// GuestReserveMiB is how much of a guest's memory its kernel, the agent and an
// interpreter need, and what is written may therefore not take.
const GuestReserveMiB = 64

// least is the least of each limit that a sandbox works with.
var least = Limits{
	Size:    Size{VCPUs: 1, MemoryMiB: minMemoryMiB},
	DiskMiB: 1, PIDs: 16,
	Lifetime: time.Second, IdleTimeout: time.Second, ExecTimeout: time.Second,
	Execs: 1, OutputBytes: 1,
}

// LeastLimits returns the least of each limit that may be asked for.
func LeastLimits() Limits { return least }

// Check returns an error if p contradicts itself.
func (p Policy) Check() error {
	size := p.Ceiling.Size
	if err := size.Check(); err != nil {
		return fmt.Errorf("ceiling: %w", err)
	}
	if _, err := p.Resolve(p.Default); err != nil {
		return fmt.Errorf("default limits: %w", err)
	}
	return nil
}

// Resolve returns the limits of a sandbox for which asked was asked: the
// defaults in the place of zeros. It is an error to ask for more than the
// ceiling or for less than a sandbox works with; the error names the limit as
// the API does, and both values.
func (p Policy) Resolve(asked Limits) (Limits, error) {
	var c chooser
	def, most := p.Default, p.Ceiling
	got := Limits{
		Size: Size{
			VCPUs:     choose(&c, "vcpus", 1, asked.VCPUs, def.VCPUs, least.VCPUs, most.VCPUs),
			MemoryMiB: choose(&c, "memory_mib", 1, asked.MemoryMiB, def.MemoryMiB, least.MemoryMiB, most.MemoryMiB),
		},
		PIDs:        choose(&c, "pids", 1, asked.PIDs, def.PIDs, least.PIDs, most.PIDs),
		Lifetime:    choose(&c, "timeout_s", time.Second, asked.Lifetime, def.Lifetime, least.Lifetime, most.Lifetime),
		IdleTimeout: choose(&c, "idle_timeout_s", time.Second, asked.IdleTimeout, def.IdleTimeout, least.IdleTimeout, most.IdleTimeout),
		ExecTimeout: choose(&c, "exec_timeout_s", time.Second, asked.ExecTimeout, def.ExecTimeout, least.ExecTimeout, most.ExecTimeout),
		Execs:       choose(&c, "execs", 1, asked.Execs, def.Execs, least.Execs, most.Execs),
		OutputBytes: choose(&c, "output_bytes", 1, asked.OutputBytes, def.OutputBytes, least.OutputBytes, most.OutputBytes),
	}
	if c.err != nil {
		return Limits{}, c.err
	}
	disk := got.MemoryMiB - GuestReserveMiB
	if asked.DiskMiB > disk {
		return Limits{}, Invalid("disk_mib is %d; with memory_mib %d it can be %d at most, because it is kept in the guest's memory",
			asked.DiskMiB, got.MemoryMiB, disk)
	}
	got.DiskMiB = choose(&c, "disk_mib", 1, asked.DiskMiB, got.MemoryMiB/2, least.DiskMiB, disk)
	return got, c.err
}

// chooser keeps the first error of several choices.
type chooser struct{ err error }

// choose returns asked, or def if that is zero, and notes an error if it is not
// between min and max. The limit is measured in unit.
func choose[T int | time.Duration](c *chooser, name string, unit, asked, def, lowest, highest T) T {
	value := asked
	if value == 0 {
		value = def
	}
	switch {
	case c.err != nil:
	case value < lowest:
		c.err = Invalid("%s is %d; it must be at least %d", name, value/unit, lowest/unit)
	case value > highest:
		c.err = Invalid("%s is %d; this emberd allows %d at most", name, value/unit, highest/unit)
	}
	return value
}

// VMMOverheadMiB is what a VMM may use beside its guest's memory: Firecracker
// itself, its copy of the executable, and page tables.
const VMMOverheadMiB = 64

// PromisedMiB is the host memory that a microVM of that size may come to use.
func (s Size) PromisedMiB() int { return s.MemoryMiB + VMMOverheadMiB }
