package daemon

import (
	"cmp"
	"context"
	"slices"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry"
	"github.com/emberd/emberd/internal/telemetry/trace"
	"github.com/emberd/emberd/internal/version"
)

// openTraces has traces sent to the collector that the daemon was told of, if any.
func (d *Daemon) openTraces() (err error) {
	if d.cfg.TraceEndpoint == "" {
		return nil
	}
	if d.tracer, err = trace.New(d.cfg.TraceEndpoint, version.Version, d.log); err != nil {
		return err
	}
	d.release.Add("traces", func(context.Context) error { d.tracer.Close(); return nil })
	return nil
}

// sources is whom a scrape asks.
func (d *Daemon) sources(kept *pool.Pool) telemetry.Sources {
	s := telemetry.Sources{
		Sandboxes: d.engine.Loads,
		Promised: func() (promised, capacity telemetry.Room) {
			now, most := d.engine.Promised()
			return room(now), room(most)
		},
		Pool: func() []telemetry.Stock { return countPool(kept.Status()) },
		VMMs: d.vmms,
	}
	if d.templates != nil {
		s.Templates = func() telemetry.Templates { return countTemplates(d.templates.List(), d.templates.Counts()) }
	}
	return s
}

func room(c engine.Capacity) telemetry.Room {
	return telemetry.Room{Sandboxes: c.Sandboxes, MemoryMiB: c.MemoryMiB, VCPUs: c.VCPUs}
}

func countPool(status []pool.Status) []telemetry.Stock {
	all := make([]telemetry.Stock, len(status))
	for i, s := range status {
		all[i] = telemetry.Stock{
			Pack: s.Stock.Pack.Name, Ready: s.Ready, Busy: s.Busy, Target: s.Target, Max: s.Stock.Bounds.Max,
			Hits: s.Hits, Misses: s.Misses, Refills: s.Refills, Failures: s.Failures,
		}
	}
	return all
}

func countTemplates(all []template.Info, counts template.Counts) telemetry.Templates {
	t := telemetry.Templates{
		States: map[string]int{}, Builds: counts.Builds, Failures: counts.Failures,
		Refused: counts.Refused, FailedRestores: counts.FailedRestores,
	}
	for _, state := range []template.State{template.Ready, template.Building, template.Failed, template.Unverified} {
		t.States[string(state)] = 0
	}
	for _, info := range all {
		t.States[string(info.State)]++
		t.Bytes += info.Bytes
	}
	return t
}

// stats returns what sandboxes use, in the API's words.
func (d *Daemon) stats() rest.Stats {
	var vmms []telemetry.VMM
	if d.vmms != nil {
		vmms = d.vmms.All()
	}
	byID := make(map[string]telemetry.VMM, len(vmms))
	promised, capacity := d.engine.Promised()
	total := rest.Total{VMMs: len(vmms), PromisedMiB: promised.MemoryMiB, CapacityMiB: capacity.MemoryMiB}
	for _, vmm := range vmms {
		byID[vmm.ID] = vmm
		total.OwnBytes += vmm.Memory.Own
		total.SharedBytes += vmm.Memory.Shared
	}
	loads := d.engine.Loads()
	slices.SortFunc(loads, func(a, b sandbox.Load) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	all := make([]rest.Usage, len(loads))
	for i, load := range loads {
		vmm := byID[string(load.VM)]
		all[i] = rest.Usage{
			ID: string(load.ID), LanguagePack: load.Pack, State: string(load.State), BootPath: string(load.BootPath),
			CreatedAt: load.CreatedAt, ExpiresAt: load.ExpiresAt, Execs: load.Execs, MemoryMiB: load.Limits.MemoryMiB,
			PID: vmm.PID, CPUUS: vmm.CPU.Microseconds(), OwnBytes: vmm.Memory.Own, SharedBytes: vmm.Memory.Shared,
		}
	}
	return rest.Stats{Sandboxes: all, Total: total}
}
