package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

// wish is what is asked of a new sandbox.
type wish struct {
	pack, bootPath string
	limits         client.Limits
	reach          reach
	key            string // of a request that may be repeated
	// options are all of it but the pack, once it is settled.
	options []client.CreateOption
}

// settle reads what the wish leaves to files.
func (w *wish) settle(ctx context.Context, a *app) error {
	w.options = []client.CreateOption{client.WithLimits(w.limits), client.WithBootPath(w.bootPath)}
	if !w.reach.given() {
		return nil
	}
	policy, err := w.reach.policy(ctx, a)
	w.options = append(w.options, client.WithEgress(policy))
	return err
}

// flags adds a flag for each part of the wish.
func (w *wish) flags(a *app, cmd *cobra.Command) {
	a.packFlag(cmd, &w.pack)
	limitFlags(cmd, &w.limits)
	w.reach.flags(cmd, "egress")
	cmd.Flags().StringVar(&w.bootPath, "boot-path", "", "insist on this way to a microVM: cold-boot, restore or pool")
}

// limitFlags adds the flags for what a new sandbox may use.
func limitFlags(cmd *cobra.Command, l *client.Limits) {
	f := cmd.Flags()
	f.IntVar(&l.VCPUs, "vcpus", 0, "virtual CPUs (default: the daemon's, as for all of these)")
	f.IntVar(&l.MemoryMiB, "memory", 0, "memory in MiB")
	f.IntVar(&l.DiskMiB, "disk", 0, "MiB that may be written to files; they are kept in the sandbox's memory")
	f.IntVar(&l.PIDs, "pids", 0, "processes and threads")
	f.DurationVar(&l.Lifetime, "lifetime", 0, "delete the sandbox after this time, such as 90s or 8h")
	f.DurationVar(&l.IdleTimeout, "idle-timeout", 0, "delete it when no program has run for this time")
	f.DurationVar(&l.ExecTimeout, "exec-timeout", 0, "the longest that any program in it may run")
	f.IntVar(&l.Execs, "execs", 0, "programs that may run at a time")
	f.IntVar(&l.OutputBytes, "output", 0, "bytes of each output stream that a result carries")
}

// expiry says when a sandbox ends if nothing is done with it.
func expiry(sb rest.Sandbox, now time.Time) string {
	end, why := sb.ExpiresAt, ""
	if idle := sb.IdleExpiresAt; !idle.IsZero() && idle.Before(end) {
		end, why = idle, " if idle"
	}
	return fmt.Sprintf("in %s%s", age(max(0, end.Sub(now))), why)
}
