package main

import (
	"github.com/emberd/emberd/internal/config"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/sandbox"
)

// limitSettings adds what sandboxes are granted: each limit has a default and a
// ceiling, and all sandboxes together have a capacity.
func limitSettings(t *config.Table, cfg *daemon.Config) {
	for _, g := range []struct {
		title, prefix, usage string
		limits               *sandbox.Limits
	}{
		{"What a sandbox has that asks for nothing", "default-", " of a sandbox that asks for none", &cfg.Limits.Default},
		{"What a sandbox may ask for", "max-", " at most, for one sandbox", &cfg.Limits.Ceiling},
	} {
		f, l := t.Section(g.title), g.limits
		f.IntVar(&l.VCPUs, g.prefix+"vcpus", l.VCPUs, "virtual CPUs"+g.usage)
		f.IntVar(&l.MemoryMiB, g.prefix+"memory", l.MemoryMiB, "memory in MiB"+g.usage)
		f.IntVar(&l.PIDs, g.prefix+"pids", l.PIDs, "processes and threads"+g.usage)
		f.DurationVar(&l.Lifetime, g.prefix+"lifetime", l.Lifetime, "time from create to the end"+g.usage)
		f.DurationVar(&l.IdleTimeout, g.prefix+"idle-timeout", l.IdleTimeout, "time without a program"+g.usage)
		f.DurationVar(&l.ExecTimeout, g.prefix+"exec-timeout", l.ExecTimeout, "run time of a program"+g.usage)
		f.IntVar(&l.Execs, g.prefix+"execs", l.Execs, "programs at a time"+g.usage)
		f.IntVar(&l.OutputBytes, g.prefix+"output", l.OutputBytes, "bytes kept of each output stream"+g.usage)
	}
	f, c := t.Section("What all sandboxes have together"), &cfg.Capacity
	f.IntVar(&c.Sandboxes, "capacity-sandboxes", c.Sandboxes, "how many sandboxes there may be")
	f.IntVar(&c.MemoryMiB, "capacity-memory", c.MemoryMiB, "memory in MiB that all sandboxes may take together, VMMs included")
	f.IntVar(&c.VCPUs, "capacity-vcpus", c.VCPUs, "virtual CPUs that all sandboxes may have together")
	f.IntVar(&cfg.OnceKeys, "idempotency-keys", cfg.OnceKeys, "creates with an Idempotency-Key that are remembered, each for 24 hours")
	t.Derive("capacity-memory", "the host's less 512 MiB", "15360")
	t.Derive("capacity-vcpus", "32 for each of the host's CPUs", "256")
}
