package client

import (
	"time"

	"github.com/emberd/emberd/api/rest"
)

// Limits is what a sandbox may use. A limit that is zero has the daemon's
// default; nothing is unlimited.
type Limits struct {
	VCPUs     int
	MemoryMiB int
	// DiskMiB is how much may be written to files. They are kept in the guest's
	// memory; the default is half of it.
	DiskMiB int
	// PIDs is how many processes and threads programs may have together.
	PIDs int
	// Lifetime is how long the sandbox lives, and IdleTimeout how long it lives
	// while no program runs. Then it is deleted. Both, and ExecTimeout, are
	// rounded up to seconds.
	Lifetime, IdleTimeout time.Duration
	// ExecTimeout is how long one program may run.
	ExecTimeout time.Duration
	// Execs is how many programs may run at a time.
	Execs int
	// OutputBytes is how much of each output stream a [Result] carries.
	OutputBytes int
}

// CreateOption says more about the sandbox that [Client.Create] makes.
type CreateOption func(*rest.CreateRequest)

// WithBootPath insists on a sandbox whose microVM comes to be in one way:
// "cold-boot", "restore" or "pool". Where that is not to be had, there is none.
func WithBootPath(path string) CreateOption {
	return func(r *rest.CreateRequest) { r.BootPath = path }
}

// WithLimits asks for a sandbox that may use as much as l says.
func WithLimits(l Limits) CreateOption {
	return func(r *rest.CreateRequest) {
		r.Limits = rest.Limits{
			VCPUs:        l.VCPUs,
			MemoryMiB:    l.MemoryMiB,
			DiskMiB:      l.DiskMiB,
			PIDs:         l.PIDs,
			TimeoutS:     seconds(l.Lifetime),
			IdleTimeoutS: seconds(l.IdleTimeout),
			ExecTimeoutS: seconds(l.ExecTimeout),
			Execs:        l.Execs,
			OutputBytes:  l.OutputBytes,
		}
	}
}

// seconds rounds d up, so that a limit does not become the default.
func seconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}
