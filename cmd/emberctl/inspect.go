package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
)

func newInspectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect ID",
		Short: "Show what confines a sandbox on its host",
		Long: `Inspect shows the jail of a sandbox's VMM: its user, root directory and files,
namespaces, cgroup and every limit, and the command that made it. It is what
emberd has set up; what the kernel enforces can be read in /proc/PID.`,
		Example: `  emberctl inspect sb_a1b2c3d4e5f6
  emberctl inspect sb_a1b2c3d4e5f6 --json | jq .jail.cgroup_limits`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := a.client().Inspect(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(in)
			}
			return a.printTable(inspection(in))
		},
		ValidArgsFunction: a.completeIDs(1),
	}
}

// inspection returns in as rows of a table.
func inspection(in rest.Inspection) [][]string {
	j := in.Jail
	rows := [][]string{
		{"sandbox", in.Sandbox.ID},
		{"pack", in.Sandbox.LanguagePack},
		{"pid", fmt.Sprint(j.PID)},
		{"user", fmt.Sprintf("%d:%d", j.UID, j.GID)},
		{"root", j.Root},
		{"namespaces", strings.Join(j.Namespaces, " ")},
		{"umask", j.Umask},
		{"bounding set", strings.Join(j.BoundingSet, " ")},
		{"console", fmt.Sprintf("the last %d bytes", j.ConsoleBytes)},
		{"cgroup", j.Cgroup},
	}
	for _, file := range slices.Sorted(maps.Keys(j.CgroupLimits)) {
		rows = append(rows, []string{"  " + file, j.CgroupLimits[file]})
	}
	rows = append(rows, []string{"resources", ""})
	for _, name := range slices.Sorted(maps.Keys(j.Rlimits)) {
		rows = append(rows, []string{"  " + name, fmt.Sprint(j.Rlimits[name])})
	}
	for _, m := range j.Missing {
		rows = append(rows, []string{"not enforced", m})
	}
	rows = append(rows, []string{"files", ""})
	for _, f := range j.Files {
		about := fmt.Sprintf("%s %s %d:%d", cmp.Or(f.Kind, "file"), f.Mode, f.UID, f.GID)
		if f.Source != "" {
			about += " = " + f.Source
		}
		rows = append(rows, []string{"  " + f.Path, about})
	}
	return append(rows, []string{"command", strings.Join(j.Command, " ")})
}
