package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
)

func newPackCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pack",
		Short: "Build and list language packs",
		Long: `A language pack is a read-only root filesystem and the interpreter in it that
runs a sandbox's code.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPackBuildCmd(a), newPackLsCmd(a))
	return cmd
}

func newPackBuildCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "build [NAME...]",
		Short: "Build packs that are missing or out of date",
		Long: `Build makes the image of each pack named, or of every pack, from Debian packages.
A pack whose image is there and was made from the same definition is left alone.
Sandboxes that run keep the image they started with; emberd offers the new one
after it was restarted.

It needs root, mmdebstrap and squashfs-tools, which emberctl setup installs.`,
		Example: `  sudo emberctl pack build
  sudo emberctl pack build python --force`,
		RunE: func(cmd *cobra.Command, names []string) error {
			defs, err := pack.Definitions()
			if err != nil {
				return err
			}
			for _, name := range names {
				if _, err := pack.Find(defs, name); err != nil {
					return usageError(err)
				}
			}
			report, stop := a.progress()
			defer stop()
			data := paths.Data(a.dataDir)
			for _, def := range defs {
				if len(names) > 0 && !slices.Contains(names, def.Name) {
					continue
				}
				if status, _, _ := pack.Inspect(data, def); status == pack.Ready && !force {
					continue
				}
				if _, err := pack.Build(cmd.Context(), def, data, report); err != nil {
					return err
				}
			}
			stop()
			return a.printPacks(data)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "build even what is up to date")
	return cmd
}

func newPackLsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List packs",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.printPacks(paths.Data(a.dataDir))
		},
	}
}

// packInfo is one line of what pack ls prints.
type packInfo struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Interpreter string `json:"interpreter"`
	// Status is "ready", "out of date", "not built" or "broken".
	Status string `json:"status"`
	Reason string `json:"reason,omitempty"`
	Size   int64  `json:"size,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// printPacks prints every pack that this program has a definition of, built or
// not.
func (a *app) printPacks(data paths.Data) error {
	defs, err := pack.Definitions()
	if err != nil {
		return err
	}
	list := make([]packInfo, 0, len(defs))
	for _, def := range defs {
		status, m, err := pack.Inspect(data, def)
		info := packInfo{
			Name: def.Name, Description: def.Description, Interpreter: def.Interpreter,
			Status: string(status), Size: m.Size, Digest: m.Digest,
		}
		if err != nil {
			info.Reason = err.Error()
		}
		list = append(list, info)
	}
	if a.json {
		return a.printJSON(list)
	}
	rows := [][]string{{"NAME", "STATUS", "SIZE", "DIGEST", "DESCRIPTION"}}
	for _, p := range list {
		size, digest := "-", "-"
		if p.Digest != "" {
			size, digest = fmt.Sprintf("%.1f MB", float64(p.Size)/1e6), p.Digest[:12]
		}
		rows = append(rows, []string{p.Name, p.Status, size, digest, p.Description})
	}
	return a.printTable(rows)
}
