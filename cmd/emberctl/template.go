package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
)

func newTemplateCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template",
		Short: "Build, list and remove templates",
		Long: `A template is a snapshot of a microVM that was booted and warmed up. Sandboxes of
its pack and size are restored from it, which is faster than a boot.

emberd makes the templates of its default size by itself when they are missed, and
verifies each before it is used. What was made on another host, or for another
pack, kernel or Firecracker, is removed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTemplateBuildCmd(a), newTemplateLsCmd(a), newTemplateRmCmd(a))
	return cmd
}

func newTemplateBuildCmd(a *app) *cobra.Command {
	var req rest.TemplateRequest
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build a template, unless there is one",
		Example: `  emberctl template build
  emberctl template build --pack shell --memory-mib 512`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, stop := a.progress()
			defer stop()
			report("building the template…")
			t, err := a.client().BuildTemplate(cmd.Context(), req)
			stop()
			if err != nil {
				return err
			}
			return a.printTemplates([]rest.Template{t})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.LanguagePack, "pack", "", "the language pack; emberd's default if it is not given")
	f.IntVar(&req.MemoryMiB, "memory-mib", 0, "memory of the microVMs; emberd's default if it is not given")
	f.IntVar(&req.VCPUs, "vcpus", 0, "virtual CPUs of the microVMs; emberd's default if it is not given")
	f.BoolVar(&req.Egress, "egress", false, "the template for sandboxes with egress, which have a network interface")
	return cmd
}

func newTemplateLsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List templates",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Templates(cmd.Context())
			if err != nil {
				return err
			}
			return a.printTemplates(list)
		},
	}
}

func newTemplateRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID...",
		Short: "Remove templates",
		Long: `Rm removes templates. Sandboxes that were restored from them go on, and emberd
makes them anew when it needs them.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			for _, id := range ids {
				if err := a.client().DeleteTemplate(cmd.Context(), id); err != nil {
					return fmt.Errorf("template %s: %w", id, err)
				}
			}
			return nil
		},
	}
}

func (a *app) printTemplates(list []rest.Template) error {
	if a.json {
		return a.printJSON(rest.TemplateList{Templates: list})
	}
	rows := [][]string{{"ID", "PACK", "VCPUS", "MEMORY", "EGRESS", "STATE", "ON DISK", "LENGTH", "MADE"}}
	for _, t := range list {
		row := []string{
			"-", t.LanguagePack, fmt.Sprint(t.Size.VCPUs), fmt.Sprintf("%d MiB", t.Size.MemoryMiB), "no", t.State, "-", "-", "-",
		}
		if t.Egress {
			row[4] = "yes"
		}
		if t.Phase != "" {
			row[5] += " (" + t.Phase + ")"
		}
		if t.ID != "" {
			row[0], row[8] = t.ID, t.CreatedAt.Local().Format(time.DateTime)
			row[6], row[7] = fmt.Sprintf("%.1f MB", float64(t.Bytes)/1e6), fmt.Sprintf("%.1f MB", float64(t.Apparent)/1e6)
		}
		rows = append(rows, row)
	}
	return a.printTable(rows)
}
