package daemon

import (
	"context"

	"github.com/emberd/emberd/internal/doctor"
)

// checkHost logs what the doctor finds wrong with this host. What would keep
// emberd from working has kept it from starting; the rest is for an operator to
// know, and nobody waits for it.
func (d *Daemon) checkHost(ctx context.Context) {
	env := doctor.NewEnv(d.cfg.DataDir, d.cfg.RunDir)
	env.Versions = func(context.Context, string, string) (string, error) { return d.firecracker, nil }
	for _, r := range doctor.Wrong(doctor.Run(ctx, env)) {
		d.log.Warn("host check", "check", r.Name, "verdict", string(r.Verdict), "reason", r.Reason, "remedy", r.Remedy)
	}
}
