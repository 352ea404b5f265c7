package provision

import (
	"context"
	"errors"
	"time"

	"github.com/emberd/emberd/internal/x/process"
)

// maxStarved is how long the agent of a VMM that gets no CPU is waited for.
const maxStarved = time.Minute

// Ping asks the agent for a sign of life and waits for it that long. The error is
// [context.DeadlineExceeded] if there is none. A host that is too busy to run the
// VMM is not taken for a guest that is silent: as long as the VMM has waited for a
// CPU for most of the time, the agent is asked again, for a minute in all.
func (v *VM) Ping(ctx context.Context, limit time.Duration) error {
	vmm := v.Jail().PID
	for began := time.Now(); ; {
		waited := process.Waited(vmm)
		err := v.ping(ctx, limit)
		starved := process.Waited(vmm)-waited > limit/2
		if !errors.Is(err, context.DeadlineExceeded) || !starved || time.Since(began) > maxStarved {
			return err
		}
	}
}

func (v *VM) ping(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return v.Agent.Ping(ctx)
}
