package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/bench"
	"github.com/emberd/emberd/internal/paths"
)

const benchHelp = `Bench lives the lives of some hundred sandboxes and prints what their parts cost.

Times are stated in P as well: the time of one plain start of the interpreter by
fork and exec inside a sandbox, right before and after what was measured.
Milliseconds differ from host to host; these ratios hardly do.

Classes are never mixed. A sandbox counts as what its record says:

  create_pool, create_restore, create_cold   until it takes programs
  first_exec_pool, first_exec_restore        its first program, print(6*7)
  exec                                       a later one, after a moment's thought
  exec_in_a_row                              one that comes at once
  delete                                     until the answer
  delete_gone                                until process, cgroup and files are gone
  cycle                                      create from the pool, first exec, delete
  node_exec, node_exec_in_a_row              console.log(42), if there is a pack node
  node_plain_start                           the same by fork and exec in the sandbox
  floor_restore                              Firecracker alone: start, load, first answer
  http                                       a request for which nothing is done

Memory, delete_gone, the floor and what is left are read from the host: run it
there, as root. Nothing else should be running.`

func newBenchCmd(a *app) *cobra.Command {
	cfg := bench.Config{}
	var compare string
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what sandboxes cost on this host",
		Long:  benchHelp,
		Example: `  emberctl bench
  emberctl bench --json >new.json; emberctl bench --compare old.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var old *bench.Report
			if compare != "" {
				var err error
				if old, err = readReport(compare); err != nil {
					return err
				}
			}
			cfg.Client = a.client()
			cfg.Data = paths.Data(a.dataDir)
			show, stop := a.progress()
			defer stop()
			cfg.Progress = show
			report, err := bench.Run(cmd.Context(), cfg)
			stop()
			if err != nil {
				return err
			}
			return a.printReport(report, old)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Pack, "pack", "python", "a pack whose interpreter is python3")
	f.IntVar(&cfg.N, "n", 20, "how many sandboxes of each class")
	f.IntVar(&cfg.Cold, "cold", 3, "how many cold boots")
	f.IntVar(&cfg.Burst, "burst", 100, "how many creates in a row")
	f.IntSliceVar(&cfg.Clients, "clients", []int{1, 2, 4}, "numbers of clients at a time")
	f.IntVar(&cfg.Cycles, "cycles", 0, "how many more lives before what is left is looked for, with emberd's memory before and after them")
	f.StringVar(&compare, "compare", "", "a file that --json printed, to compare with")
	return cmd
}

func readReport(path string) (*bench.Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(bench.Report)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s is no report of emberctl bench: %w", path, err)
	}
	if r.PMS == 0 {
		return nil, fmt.Errorf("%s is no report of emberctl bench: it has no p_ms", path)
	}
	return r, nil
}

// printReport prints a report, and how it differs from old. What was left behind
// is an error.
func (a *app) printReport(r, old *bench.Report) error {
	var changes []bench.Change
	if old != nil {
		changes = bench.Compare(old, r)
	}
	var left error
	if len(r.Left) > 0 {
		left = fmt.Errorf("left behind: %v", r.Left)
	}
	if a.json {
		return errors.Join(a.printJSON(struct {
			*bench.Report
			Changes []bench.Change `json:"changes,omitempty"`
		}{r, changes}), left)
	}
	h := r.Host
	say(a.stdout, "%s, %d CPUs, %d MiB, Linux %s, KVM %s\nemberd %s, Firecracker %s, load %s\n\nP = %.1f ms",
		h.CPU, h.CPUs, h.MemoryMiB, h.Kernel, h.KVM, h.Emberd, h.Firecracker, h.Load, r.PMS)
	if near := slices.Sorted(maps.Values(r.PMSOf)); len(near) > 0 {
		say(a.stdout, ", between %.1f and %.1f in the parts of the run", near[0], near[len(near)-1])
	}
	say(a.stdout, "\n\n")
	if err := a.printTable(r.Table()); err != nil {
		return err
	}
	say(a.stdout, "\n")
	if err := a.printTable(r.Facts()); err != nil {
		return err
	}
	if len(changes) > 0 {
		rows := [][]string{{"CHANGE", "WAS", "IS", ""}}
		for _, c := range changes {
			rows = append(rows, []string{c.Name, fmt.Sprintf("%.3f", c.Old), fmt.Sprintf("%.3f", c.New), fmt.Sprintf("%+.1f %%", c.Percent)})
		}
		say(a.stdout, "\n")
		if err := a.printTable(rows); err != nil {
			return err
		}
	}
	return left
}
