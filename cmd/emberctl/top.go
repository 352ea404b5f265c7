package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
)

func newTopCmd(a *app) *cobra.Command {
	every := 2 * time.Second
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what sandboxes use",
		Long: `Top shows what the host counts for the VMM of each sandbox: CPU time, and memory,
its own and its part of what it shares with others. On a terminal it goes on until
it is interrupted, and CPU is since the last time; elsewhere, and with --json, it
shows all of it once, and CPU is since the sandbox was created.`,
		Example: `  emberctl top
  emberctl top --json | jq '.sandboxes[] | select(.own_bytes > 1e8) | .id'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < minEvery {
				return usageError(fmt.Errorf("--every is %v; it must be at least %v", every, minEvery))
			}
			stats, err := a.client().Stats(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(stats)
			}
			if !isTerminal(a.stdout) {
				return a.printTable(usageRows(stats, rest.Stats{}, 0, time.Now()))
			}
			return a.watchTop(cmd, stats, every)
		},
	}
	cmd.Flags().DurationVar(&every, "every", every, "how often to look")
	return cmd
}

// minEvery is as often as the daemon looks itself.
const minEvery = time.Second

// clearScreen puts the cursor into the corner and clears what is below.
const clearScreen = "\x1b[H\x1b[J"

// watchTop shows what sandboxes use, again and again.
func (a *app) watchTop(cmd *cobra.Command, now rest.Stats, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var before rest.Stats
	at := time.Now()
	var between time.Duration
	for {
		if _, err := fmt.Fprint(a.stdout, clearScreen+totalLine(now.Total)+"\n\n"); err != nil {
			return err
		}
		if err := a.printTable(usageRows(now, before, between, time.Now())); err != nil {
			return err
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-tick.C:
		}
		before = now
		var err error
		if now, err = a.client().Stats(cmd.Context()); err != nil {
			return err
		}
		between, at = time.Since(at), time.Now()
	}
}

func totalLine(t rest.Total) string {
	return fmt.Sprintf("%d VMMs use %s and share %s; %d of %d MiB are promised to sandboxes",
		t.VMMs, mebibytes(t.OwnBytes), mebibytes(t.SharedBytes), t.PromisedMiB, t.CapacityMiB)
}

// usageRows returns stats as rows of a table, the busiest sandbox first. The CPU
// time is what came since before, over the time between, or over the life of the
// sandbox where it was not there yet.
func usageRows(stats, before rest.Stats, between time.Duration, now time.Time) [][]string {
	last := make(map[string]int64, len(before.Sandboxes))
	for _, u := range before.Sandboxes {
		last[u.ID] = u.CPUUS
	}
	busy := func(u rest.Usage) float64 {
		spent, over := u.CPUUS, now.Sub(u.CreatedAt)
		if was, there := last[u.ID]; there {
			spent, over = u.CPUUS-was, between
		}
		return 100 * float64(spent) / max(1, float64(over.Microseconds()))
	}
	all := slices.Clone(stats.Sandboxes)
	slices.SortStableFunc(all, func(x, y rest.Usage) int { return cmp.Compare(busy(y), busy(x)) })
	rows := [][]string{{"ID", "PACK", "STATE", "BOOT PATH", "CPU", "MEMORY", "SHARED", "OF", "EXECS", "AGE", "EXPIRES"}}
	for _, u := range all {
		rows = append(rows, []string{
			u.ID, u.LanguagePack, u.State, cmp.Or(u.BootPath, "-"), fmt.Sprintf("%.1f%%", busy(u)),
			mebibytes(u.OwnBytes), mebibytes(u.SharedBytes), fmt.Sprintf("%d MiB", u.MemoryMiB), fmt.Sprint(u.Execs),
			age(now.Sub(u.CreatedAt)), "in " + age(u.ExpiresAt.Sub(now)),
		})
	}
	return rows
}

// mebibytes is n bytes for people, "-" if that is not known.
func mebibytes(n int64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
