package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
)

// sandboxesAtOnce is how many sandboxes memory is measured of together: what they
// share is then divided among as many.
const sandboxesAtOnce = 4

// memory measures what a sandbox of its own uses, before and after an exec.
func (b *run) memory(ctx context.Context) error {
	var ids []string
	err := func() error {
		for range sandboxesAtOnce {
			if err := b.awaitPool(ctx); err != nil {
				return err
			}
			id, err := b.Client.Create(ctx, b.Pack)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		if err := b.weigh(ctx, ids, "idle"); err != nil {
			b.lacks("pss_mib", err)
			return nil
		}
		for _, id := range ids {
			if err := b.answer(ctx, id); err != nil {
				return err
			}
		}
		return b.weigh(ctx, ids, "loaded")
	}()
	for _, id := range ids {
		err = errors.Join(err, b.Client.Delete(ctx, id))
	}
	return err
}

// weigh notes the memory of sandboxes: the mean of what is their own, and the sum
// of what they share.
func (b *run) weigh(ctx context.Context, ids []string, as string) error {
	var sum memory
	for _, id := range ids {
		in, err := b.Client.Inspect(ctx, id)
		if err != nil {
			return err
		}
		m, err := memoryOf(in.Jail.PID)
		if err != nil {
			return err
		}
		sum.own += m.own
		sum.shared += m.shared
	}
	b.report.PSSMiB[as] = round(float64(sum.own) / float64(len(ids)) / 1024)
	b.report.PSSMiB["template"] = round(float64(sum.shared) / 1024)
	return nil
}

// sweep lives whole lives, several at a time. Where they come from is not chosen:
// that is what a daemon under load does.
func (b *run) sweep(ctx context.Context) error {
	for _, clients := range b.Clients {
		if err := b.awaitPool(ctx); err != nil {
			return err
		}
		p, err := b.together(ctx, clients, max(2, b.N/clients))
		if err != nil {
			return fmt.Errorf("%d clients: %w", clients, err)
		}
		b.report.Sweep = append(b.report.Sweep, p)
	}
	return nil
}

func (b *run) together(ctx context.Context, clients, each int) (SweepPoint, error) {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		took   []time.Duration
		pooled int
		errs   []error
	)
	began := time.Now()
	for range clients {
		wg.Go(func() {
			for range each {
				cycle, way, err := b.oneCycle(ctx)
				mu.Lock()
				errs = append(errs, err)
				took = append(took, cycle)
				if way == string(sandbox.Pooled) {
					pooled++
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return SweepPoint{
		Clients: clients, Cycle: statsOf(took), Pooled: pooled,
		PerSecond: round(float64(clients*each) / time.Since(began).Seconds()),
	}, errors.Join(errs...)
}

// oneCycle is create, exec and delete, without what asks where it came from.
func (b *run) oneCycle(ctx context.Context) (took time.Duration, way string, err error) {
	began := time.Now()
	id, err := b.Client.Create(ctx, b.Pack)
	if err != nil {
		return 0, "", err
	}
	err = b.answer(ctx, id)
	ran := time.Since(began)
	sb, getErr := b.Client.Get(ctx, id)
	asked := time.Now()
	err = errors.Join(err, getErr, b.Client.Delete(ctx, id))
	return ran + time.Since(asked), sb.BootPath, err
}

// burst creates sandboxes in a row, each deleted behind the next create: how fast
// they come then is how fast VMs are made ahead.
func (b *run) burst(ctx context.Context) error {
	if b.Burst == 0 {
		return nil
	}
	if err := b.awaitPool(ctx); err != nil {
		return err
	}
	var (
		deletes sync.WaitGroup
		mu      sync.Mutex
		errs    []error
	)
	began := time.Now()
	for range b.Burst {
		id, err := b.Client.Create(ctx, b.Pack)
		if err != nil {
			errs = append(errs, err)
			break
		}
		deletes.Go(func() {
			err := b.Client.Delete(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	took := time.Since(began)
	deletes.Wait()
	b.report.Rates["burst"] = round(float64(b.Burst) / took.Seconds())
	pool, err := b.Client.Pool(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, stock := range pool {
		if stock.Pack == b.Pack && b.Burst < 4*stock.Max {
			b.lacks("burst_to_restores_one_at_a_time", fmt.Errorf("a good part of a burst of %d is what the pool holds", b.Burst))
			return errors.Join(errs...)
		}
	}
	if restores := statsOf(b.took["create_restore"]); restores.P50 > 0 {
		b.report.Rates["restore_one_at_a_time"] = round(1000 / restores.P50)
		b.report.Ratios["burst_to_restores_one_at_a_time"] = round(b.report.Rates["burst"] / b.report.Rates["restore_one_at_a_time"])
	}
	return errors.Join(errs...)
}

// grown is after how many lives a daemon has all the memory that it keeps.
const grown = 50

// soak lives more lives, of which only emberd's memory is measured.
func (b *run) soak(ctx context.Context) error {
	rss := map[string]float64{}
	for i := range b.Cycles {
		if i == min(grown, b.Cycles-1) {
			rss["before"] = daemonRSS()
		}
		if i%50 == 0 {
			b.Progress.Step("life %d of %d", i+1, b.Cycles)
		}
		if _, _, err := b.oneCycle(ctx); err != nil {
			return err
		}
	}
	if rss["before"] > 0 {
		rss["after"] = daemonRSS()
		b.report.DaemonRSSMiB = rss
	}
	return nil
}

// fillTime is how long the pool may take to fill.
const fillTime = 2 * time.Minute

// awaitPool returns when the pool of the pack is full and nothing is being
// cleared away, so that neither is measured along.
func (b *run) awaitPool(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fillTime)
	defer cancel()
	for {
		stock, err := b.Client.Pool(ctx)
		if err != nil {
			return err
		}
		full, known := true, false
		for _, p := range stock {
			full = full && p.Ready >= p.Target
			known = known || p.Pack == b.Pack && p.Target > 0
		}
		if !known {
			return fmt.Errorf("the daemon keeps no pool of the pack %s; start it with --pool %s=4", b.Pack, b.Pack)
		}
		if full {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("the pool does not fill: %w", err)
		}
	}
}
