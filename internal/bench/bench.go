// Package bench measures what the parts of a sandbox's life cost, as a client
// sees them.
//
// The one idea is that classes are never mixed: a sandbox is counted as what its
// own record says it was, a pool hit, a restore or a cold boot, and a first exec
// is no later exec. Times are stated as ratios to P, one plain start of the
// interpreter inside a sandbox of the same run, because they differ from host to
// host and these ratios hardly do. A host differs from itself, too, from one minute
// to the next: so P is measured before and after each part of a run, and a class is
// stated in the P of its own part.
//
// What a client cannot see (memory, when the last of a sandbox is gone, what is
// left at the end) is read from the host, when the daemon is on it. The package
// knows no terminal and starts no daemon.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/progress"
)

// Config is what is measured, and how often.
type Config struct {
	Client *client.Client
	// Pack is a pack whose interpreter is python3.
	Pack string
	// N is how many sandboxes of the pool and by restore are measured, and Cold
	// how many cold boots.
	N, Cold int
	// Burst is how many sandboxes are created as fast as the pool is refilled.
	Burst int
	// Clients are the numbers of clients at a time of the sweep.
	Clients []int
	// Cycles is how many more lives are lived before what is left is looked for.
	Cycles int
	// Data is the daemon's data directory if it is on this host: its templates
	// are what Firecracker alone restores.
	Data paths.Data

	Progress progress.Func
}

// Run measures. An error means that the report says nothing; what a run merely
// lacks is in the report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	b := &run{Config: cfg, took: map[string][]time.Duration{}, near: map[string][]time.Duration{}, report: &Report{
		Began: time.Now().UTC(), Ratios: map[string]float64{}, Classes: map[string]Stats{}, PMSOf: map[string]float64{},
		PSSMiB: map[string]float64{}, Rates: map[string]float64{}, NotMeasured: map[string]string{},
		Left: []string{},
	}}
	if err := b.all(ctx); err != nil {
		return nil, err
	}
	r := b.report
	for class, took := range b.took {
		r.Classes[class] = statsOf(took)
		r.PMSOf[class] = statsOf(b.near[class]).P50
	}
	r.PMS = statsOf(b.starts).P50
	r.addRatios()
	r.Seconds = round(time.Since(r.Began).Seconds())
	return r, nil
}

// run is one run on its way.
type run struct {
	Config
	report *Report

	// starts are all that P is made of, and near those around the parts in which a
	// class was measured.
	starts []time.Duration
	near   map[string][]time.Duration

	mu   sync.Mutex
	took map[string][]time.Duration
}

func (b *run) all(ctx context.Context) error {
	info, err := b.Client.Info(ctx)
	if err != nil {
		return err
	}
	b.report.Host = hostOf(info, b.Pack)
	b.Progress.Step("filling the pool")
	if err := b.awaitPool(ctx); err != nil {
		return err
	}
	before, err := b.settled(ctx)
	if err != nil {
		return err
	}
	b.Progress.Step("measuring P")
	around, err := b.yardstick(ctx)
	if err != nil {
		return err
	}
	b.starts = slices.Clone(around)
	for _, part := range []struct {
		step string
		do   func(context.Context) error
	}{
		{"requests", b.http},
		{"sandboxes from the pool", b.pooled},
		{"sandboxes by restore", b.restored},
		{"sandboxes booted cold", b.cold},
		{"execs", b.execs},
		{"node", b.node},
		{"Firecracker alone", b.floor},
		{"memory", b.memory},
		{"several clients at a time", b.sweep},
		{"creates in a row", b.burst},
		{"more lives", b.soak},
	} {
		b.Progress.Step("%s", part.step)
		if around, err = b.part(ctx, around, part.do); err != nil {
			return fmt.Errorf("%s: %w", part.step, err)
		}
	}
	b.Progress.Step("looking for what is left")
	if err := b.awaitPool(ctx); err != nil {
		return err
	}
	b.report.Left, err = b.left(ctx, before)
	return err
}

// part measures something, and P after it. Before it P was what is given, and before
// the next part it is what is returned.
func (b *run) part(ctx context.Context, before []time.Duration, do func(context.Context) error) (after []time.Duration, err error) {
	known := map[string]int{}
	for class, took := range b.took {
		known[class] = len(took)
	}
	if err := do(ctx); err != nil {
		return nil, err
	}
	if after, err = b.yardstick(ctx); err != nil {
		return nil, err
	}
	b.starts = append(b.starts, after...)
	for class, took := range b.took {
		if len(took) > known[class] {
			b.near[class] = slices.Concat(b.near[class], before, after)
		}
	}
	return after, nil
}

// timed notes how long f takes as one of class.
func (b *run) timed(class string, f func() error) (time.Duration, error) {
	began := time.Now()
	if err := f(); err != nil {
		return 0, err
	}
	took := time.Since(began)
	b.note(class, took)
	return took, nil
}

func (b *run) note(class string, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.took[class] = append(b.took[class], took)
}

// lacks says in the report that something was not measured.
func (b *run) lacks(what string, err error) { b.report.NotMeasured[what] = err.Error() }

// plainStarts prints how long a plain start of an interpreter takes, by fork and
// exec inside the sandbox, in microseconds, nine times after one that is not
// counted.
const plainStarts = `
import subprocess, time
for i in range(10):
    began = time.perf_counter()
    subprocess.run(["python3", "-c", "print(6*7)"], stdout=subprocess.DEVNULL, check=True)
    if i: print(int((time.perf_counter() - began) * 1e6))
`

// yardstick returns how long plain starts of the interpreter take now.
func (b *run) yardstick(ctx context.Context) (starts []time.Duration, err error) {
	err = b.within(ctx, b.Pack, func(id string) error {
		starts, err = b.printed(ctx, id, plainStarts)
		return err
	})
	return starts, err
}

// printed runs code that prints times in microseconds.
func (b *run) printed(ctx context.Context, id, code string) ([]time.Duration, error) {
	res, err := b.exec(ctx, id, code)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for line := range strings.FieldsSeq(string(res.Stdout)) {
		us, err := strconv.Atoi(line)
		if err != nil {
			return nil, fmt.Errorf("the sandbox printed %.100q: %w", res.Stdout, err)
		}
		took = append(took, time.Duration(us)*time.Microsecond)
	}
	if len(took) == 0 {
		return nil, errors.New("the sandbox printed no times")
	}
	return took, nil
}

// exec runs a program that has to succeed.
func (b *run) exec(ctx context.Context, id, code string) (client.Result, error) {
	res, err := b.Client.Exec(ctx, id, client.Program{Code: code})
	if err == nil && (res.Err != "" || res.ExitCode != 0) {
		err = fmt.Errorf("%.100q ended with %d: %s %.300q", code, res.ExitCode, res.Err, res.Stderr)
	}
	return res, err
}

// answer is the program whose execs are measured.
const answer = "print(6*7)"

func (b *run) answer(ctx context.Context, id string) error {
	res, err := b.exec(ctx, id, answer)
	if err == nil && !bytes.Equal(res.Stdout, []byte("42\n")) {
		err = fmt.Errorf("%s printed %.100q", answer, res.Stdout)
	}
	return err
}

// within gives f a sandbox that is not measured.
func (b *run) within(ctx context.Context, pack string, f func(id string) error) error {
	id, err := b.Client.Create(ctx, pack)
	if err != nil {
		return err
	}
	err = b.awaitPool(ctx) // its refill is not to be measured
	if err == nil {
		err = f(id)
	}
	return errors.Join(err, b.Client.Delete(ctx, id))
}

func (b *run) pooled(ctx context.Context) error {
	for range b.N {
		if err := b.awaitPool(ctx); err != nil {
			return err
		}
		if err := b.life(ctx, sandbox.Pooled, "create_pool", "first_exec_pool", "cycle"); err != nil {
			return err
		}
	}
	return nil
}

func (b *run) restored(ctx context.Context) error {
	for range b.N {
		if err := b.awaitPool(ctx); err != nil {
			return err
		}
		err := b.life(ctx, sandbox.Restored, "create_restore", "first_exec_restore", "cycle_restore")
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *run) cold(ctx context.Context) error {
	for range b.Cold {
		if err := b.life(ctx, sandbox.ColdBoot, "create_cold", "first_exec_cold", "cycle_cold"); err != nil {
			return err
		}
	}
	return nil
}

// life is one sandbox that came to be by way, from create to gone.
func (b *run) life(ctx context.Context, way sandbox.BootPath, create, firstExec, cycle string) error {
	began := time.Now()
	var id string
	if _, err := b.timed(create, func() (err error) {
		id, err = b.Client.Create(ctx, b.Pack, client.WithBootPath(string(way)))
		return err
	}); err != nil {
		return err
	}
	created := time.Since(began)
	sb, err := b.Client.Get(ctx, id)
	if err != nil {
		return err
	}
	if sb.BootPath != string(way) {
		return fmt.Errorf("%s came to be by %s and not by %s", id, sb.BootPath, way)
	}
	trace, traceErr := traceOf(ctx, b.Client, id)
	if traceErr != nil {
		b.lacks("delete_gone", traceErr)
	}
	exec, err := b.timed(firstExec, func() error { return b.answer(ctx, id) })
	if err != nil {
		return err
	}
	asked := time.Now()
	deleted, err := b.timed("delete", func() error { return b.Client.Delete(ctx, id) })
	if err != nil {
		return err
	}
	b.note(cycle, created+exec+deleted)
	if traceErr != nil {
		return nil
	}
	if err := trace.awaitGone(ctx); err != nil {
		return err
	}
	b.note("delete_gone", time.Since(asked))
	return nil
}

// thought is how long a client is busy with something else between two programs.
const thought = 250 * time.Millisecond

// execs measures programs of a client that does something with what they say,
// and of one that does nothing else.
func (b *run) execs(ctx context.Context) error {
	return b.within(ctx, b.Pack, func(id string) error {
		if err := b.answer(ctx, id); err != nil { // the first is another class
			return err
		}
		for range 2 * b.N {
			if err := pause(ctx, thought); err != nil {
				return err
			}
			if _, err := b.timed("exec", func() error { return b.answer(ctx, id) }); err != nil {
				return err
			}
		}
		for range 2 * b.N {
			if _, err := b.timed("exec_in_a_row", func() error { return b.answer(ctx, id) }); err != nil {
				return err
			}
		}
		return nil
	})
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// http measures a request for which nothing is done, after a moment's thought too:
// in a row they take half as long, as everything is still in the CPU's caches.
func (b *run) http(ctx context.Context) error {
	for range 2 * b.N {
		if err := pause(ctx, thought); err != nil {
			return err
		}
		if _, err := b.timed("http", func() error { return b.Client.Healthy(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// nodeStarts is [plainStarts] for node.
const nodeStarts = `
const { spawnSync } = require("child_process");
for (let i = 0; i < 6; i++) {
  const began = process.hrtime.bigint();
  spawnSync("node", ["-e", "console.log(42)"]);
  if (i) console.log(String((process.hrtime.bigint() - began) / 1000n));
}`

// nodeExecs is how many are measured at most: node takes seconds to start where the
// processor is emulated.
const nodeExecs = 6

// node measures an exec of the node pack against node's own plain start: with the
// next interpreter ready, and at once.
func (b *run) node(ctx context.Context) error {
	info, err := b.Client.Info(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(info.Packs, "node") {
		b.lacks("node_exec", errors.New("the daemon has no pack node"))
		return nil
	}
	return b.within(ctx, "node", func(id string) error {
		starts, err := b.printed(ctx, id, nodeStarts)
		if err != nil {
			return err
		}
		plain := statsOf(starts)
		answer := func() error {
			res, err := b.exec(ctx, id, "console.log(42)")
			if err == nil && string(res.Stdout) != "42\n" {
				err = fmt.Errorf("node printed %.100q", res.Stdout)
			}
			return err
		}
		// The next interpreter is ready when it has been started and rehearsed.
		ready := max(thought, 3*time.Duration(plain.P50*float64(time.Millisecond)))
		for range min(b.N, nodeExecs) {
			if err := pause(ctx, ready); err != nil {
				return err
			}
			if _, err := b.timed("node_exec", answer); err != nil {
				return err
			}
		}
		for range min(b.N, nodeExecs) {
			if _, err := b.timed("node_exec_in_a_row", answer); err != nil {
				return err
			}
		}
		b.report.Classes["node_plain_start"] = plain
		b.report.Ratios["node_exec_of_its_plain_start"] = round(statsOf(b.took["node_exec"]).P50 / plain.P50)
		return nil
	})
}

// floor measures Firecracker alone. Where that cannot be, the report says so.
func (b *run) floor(ctx context.Context) error {
	snap, err := TemplateOf(b.Data, b.Pack)
	if err != nil {
		b.lacks("floor_restore", err)
		return nil
	}
	took, err := Floor(ctx, b.Data.Firecracker(), string(b.Data), snap, b.N)
	if err != nil {
		b.lacks("floor_restore", err)
		return ctx.Err()
	}
	b.took["floor_restore"] = took
	return nil
}
