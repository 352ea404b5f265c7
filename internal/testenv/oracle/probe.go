package oracle

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Probe asks one question again and again while a test goes on.
type Probe struct {
	cancel context.CancelFunc
	asking sync.WaitGroup
	timing Timing
}

// Timing is how a probe's questions were answered.
type Timing struct {
	// Took is how long each answer took, shortest first.
	Took []time.Duration
	// Errs are the answers that were errors.
	Errs []error
}

// Watch asks every interval, or as soon as the last answer is there if that
// takes longer, until the probe is stopped.
func Watch(ctx context.Context, interval time.Duration, ask func(context.Context) error) *Probe {
	ctx, cancel := context.WithCancel(ctx)
	p := &Probe{cancel: cancel}
	p.asking.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			began := time.Now()
			err := ask(ctx)
			p.timing.Took = append(p.timing.Took, time.Since(began))
			// An answer that was not waited for is none.
			if err != nil && ctx.Err() == nil {
				p.timing.Errs = append(p.timing.Errs, err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return p
}

// Stop ends the probe and tells how it went. A question without an answer yet
// counts with the time that it waited.
func (p *Probe) Stop() Timing {
	p.cancel()
	p.asking.Wait()
	slices.Sort(p.timing.Took)
	return p.timing
}

// Percentile is the time within which n of a hundred answers came.
func (t Timing) Percentile(n int) time.Duration {
	if len(t.Took) == 0 {
		return 0
	}
	return t.Took[min(len(t.Took)-1, len(t.Took)*n/100)]
}

func (t Timing) String() string {
	return fmt.Sprintf("%d answers, p50 %v, p99 %v, %d errors",
		len(t.Took), t.Percentile(50).Round(time.Microsecond), t.Percentile(99).Round(time.Microsecond), len(t.Errs))
}

// Findings judges the answers of a neighbour called who: every one has to be
// good, and 99 of a hundred within limit.
func (t Timing) Findings(who string, limit time.Duration) []Finding {
	var found []Finding
	if len(t.Errs) > 0 {
		found = append(found, Finding{Neighbour, fmt.Sprintf("%s failed %d of %d times: %v", who, len(t.Errs), len(t.Took), t.Errs[0])})
	}
	if p99 := t.Percentile(99); p99 > limit {
		found = append(found, Finding{Neighbour, fmt.Sprintf("%s took %v (p99 of %d), %v is allowed", who, p99, len(t.Took), limit)})
	}
	return found
}
