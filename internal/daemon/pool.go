package daemon

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/sandbox"
)

// The pool of a daemon that was told of none: enough for a person or an agent
// who asks for one sandbox after the other, and for a laptop to do without. It is
// smaller where it would set aside more than this share of the memory.
const (
	defaultPoolMax   = 4
	defaultPoolShare = 4
)

// DefaultPool is the pool of a daemon like cfg that was told of none. It keeps
// microVMs of the default pack, if that is installed.
func DefaultPool(cfg Config) map[string]pool.Bounds {
	if _, err := os.Stat(cfg.DataDir.PackManifest(sandbox.DefaultPack)); err != nil {
		return nil
	}
	most := min(defaultPoolMax, cfg.Capacity.MemoryMiB/defaultPoolShare/cfg.Limits.Default.PromisedMiB())
	if most < 1 {
		return nil
	}
	return map[string]pool.Bounds{sandbox.DefaultPack: {Min: (most + 1) / 2, Max: most}}
}

// planPool returns what the pool is to keep, and the capacity that is left for
// sandboxes.
func planPool(cfg Config, packs *pack.Registry) ([]pool.Stock, engine.Capacity, error) {
	kept, err := stocks(cfg, packs)
	if err != nil {
		return nil, engine.Capacity{}, err
	}
	capacity, err := setAside(cfg.Capacity, kept)
	return kept, capacity, err
}

// stocks returns what cfg wants the pool to keep, all of the default limits.
func stocks(cfg Config, packs *pack.Registry) ([]pool.Stock, error) {
	limits, err := cfg.Limits.Resolve(sandbox.Limits{})
	if err != nil {
		return nil, err
	}
	var all []pool.Stock
	for _, name := range slices.Sorted(maps.Keys(cfg.Pool)) {
		bounds := cfg.Pool[name]
		if bounds.Max == 0 {
			continue
		}
		if bounds.Min < 0 || bounds.Max < bounds.Min {
			return nil, fmt.Errorf("pool of %s: %d to %d microVMs", name, bounds.Min, bounds.Max)
		}
		p, err := packs.Get(name)
		if err != nil {
			return nil, fmt.Errorf("pool: %w", err)
		}
		all = append(all, pool.Stock{Pack: p, Limits: limits, Bounds: bounds})
	}
	return all, nil
}

// setAside takes the memory that the pool may come to use from what sandboxes are
// promised. One that leaves the pool is promised its memory like any other, and
// the next one takes its place in the pool; so nothing is ever promised twice.
func setAside(c engine.Capacity, stocks []pool.Stock) (engine.Capacity, error) {
	aside := 0
	for _, s := range stocks {
		aside += s.MemoryMiB()
	}
	if aside > 0 && aside+stocks[0].Limits.PromisedMiB() > c.MemoryMiB {
		return c, fmt.Errorf("the pool may come to use %d MiB, of %d that all sandboxes have: "+
			"that leaves no room for one of them", aside, c.MemoryMiB)
	}
	c.MemoryMiB -= aside
	return c, nil
}

// openPool puts a pool in front of source.
func (d *Daemon) openPool(source provision.Provisioner, stocks []pool.Stock, foreground *provision.Foreground) {
	var before func(context.Context, pool.Stock) error
	if d.templates != nil {
		before = func(ctx context.Context, s pool.Stock) error {
			_, err := d.templates.Build(ctx, template.Kind{Pack: s.Pack, Size: s.Limits.Size})
			return err
		}
	}
	d.pool = pool.New(pool.Config{
		Source: source, Stocks: stocks, Before: before, Prepare: d.rehearse, Foreground: foreground,
		Log: d.log, Faults: d.cfg.Faults,
	})
	d.release.Add("pool", func(ctx context.Context) error {
		if d.cfg.OnExit == Keep {
			d.pool.Leave()
			return nil
		}
		return d.pool.Close(ctx)
	})
}

// rehearse has a VM do what a first program would wait for: the agent starts the
// interpreter, a program that does nothing in any language touches what programs
// touch, and the interpreter is started for the next one. An interpreter that
// does not work is for the sandbox's programs to tell.
func (d *Daemon) rehearse(ctx context.Context, vm *provision.VM) error {
	warm := func() {
		if err := vm.Agent.Warm(ctx); err != nil {
			d.log.Debug("interpreter was not warmed up", "vm", vm.ID, "err", err)
		}
	}
	warm()
	if _, err := vm.Agent.Exec(ctx, agent.Command{Code: provision.EmptyProgram}, agent.Stdio{}); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	warm()
	return nil
}

// describePool returns how a pool stands, in the API's words.
func describePool(p *pool.Pool) []rest.PoolStock {
	all := []rest.PoolStock{}
	for _, s := range p.Status() {
		all = append(all, rest.PoolStock{
			Pack:  s.Stock.Pack.Name,
			Size:  rest.Size{VCPUs: s.Stock.Limits.VCPUs, MemoryMiB: s.Stock.Limits.MemoryMiB},
			Ready: s.Ready, Target: s.Target, Min: s.Stock.Bounds.Min, Max: s.Stock.Bounds.Max,
			Hits: s.Hits, Misses: s.Misses, Refills: s.Refills, Failures: s.Failures,
		})
	}
	return all
}
