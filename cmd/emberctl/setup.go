package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/doctor"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/setup"
)

func newSetupCmd(a *app) *cobra.Command {
	var firecracker, kernel string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Fetch and build everything emberd needs",
		Long: `Setup installs the host's tools that are missing, fetches Firecracker and a
kernel, and builds the language packs, all verified and under one directory.
What is there already is left alone, so it can be run again at any time.

Sandboxes boot Debian's kernel for virtual machines, which is fetched. With
--kernel=build they boot one that is built from the same source, here and in some
minutes: smaller and faster to start (see docs/KERNEL.md).

It needs root, and Debian or Ubuntu for its packages.`,
		Example: `  sudo emberctl setup
  sudo emberctl setup --firecracker ~/release-v1.16.1-x86_64
  sudo emberctl setup --kernel=build`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, stop := a.progress()
			defer stop()
			res, err := setup.Run(cmd.Context(), setup.Config{
				Data:        paths.Data(a.dataDir),
				Firecracker: firecracker,
				Kernel:      setup.Kernel(kernel),
				Machine:     !doctor.HostKVM().Usable,
			}, report)
			if err != nil {
				return err
			}
			stop()
			if a.json {
				return a.printJSON(res)
			}
			made := "everything was there"
			if len(res.Made) > 0 {
				made = "made " + strings.Join(res.Made, ", ")
			}
			_, err = fmt.Fprintf(a.stdout, "%s is ready: %s (Firecracker %s, %s)\n",
				a.dataDir, made, res.Firecracker, res.Kernel)
			return err
		},
	}
	cmd.Flags().StringVar(&firecracker, "firecracker", "",
		"directory with the executables firecracker and jailer to use (default: those on PATH, else a release is fetched)")
	cmd.Flags().StringVar(&kernel, "kernel", "",
		"kernel of sandboxes, debian or build (default: the one that is installed, else debian)")
	return cmd
}
