package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
)

func newPoolCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pool",
		Short: "Show the microVMs that are kept ready",
		Long: `Pool shows the microVMs that are ready before anybody asks for them. A sandbox
that asks for the default size, disk and processes gets one of them, if one is
waiting (a hit); for another one a microVM is made (a miss).

emberd keeps the least that its flag --pool says, and more, up to the most, after
it missed.`,
		Example: `  emberctl pool
  emberctl pool --json | jq '.pool[] | {pack, ready}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			stocks, err := a.client().Pool(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(rest.Pool{Pool: stocks})
			}
			rows := [][]string{{"PACK", "VCPUS", "MEMORY", "READY", "TARGET", "MIN", "MAX", "HITS", "MISSES", "REFILLS", "FAILURES"}}
			for _, s := range stocks {
				row := []string{s.Pack, strconv.Itoa(s.Size.VCPUs), fmt.Sprintf("%d MiB", s.Size.MemoryMiB)}
				for _, n := range []int64{int64(s.Ready), int64(s.Target), int64(s.Min), int64(s.Max), s.Hits, s.Misses, s.Refills, s.Failures} {
					row = append(row, strconv.FormatInt(n, 10))
				}
				rows = append(rows, row)
			}
			return a.printTable(rows)
		},
	}
}
