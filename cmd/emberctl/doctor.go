package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/doctor"
	"github.com/emberd/emberd/internal/paths"
)

func newDoctorCmd(a *app) *cobra.Command {
	var restore bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say whether this host can run emberd, and what is missing",
		Long: `Doctor checks what emberd needs, and what the host may give away of one sandbox to
another, and changes nothing. Each check says ok, warn, fail or unknown, why, and
what mends it. It says whether this host has usable KVM, and so whether emberd runs
on it directly or in the machine. emberd runs the same checks when it starts, and
logs what is not ok.

With --restore it asks a running emberd to restore 16 microVMs from one template,
and checks that they differ in their random numbers, ids and names, and that their
clocks are right.

Exit status:
  0    nothing failed
  1    a check failed`,
		Example: `  emberctl doctor
  emberctl doctor --restore`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var results []doctor.Result
			if restore {
				results = doctor.CheckRestore(cmd.Context(), a.client())
			} else {
				results = doctor.Run(cmd.Context(), doctor.NewEnv(paths.Data(a.dataDir), paths.Run(a.runDir)))
			}
			if err := a.printResults(results); err != nil {
				return err
			}
			if slices.ContainsFunc(results, func(r doctor.Result) bool { return r.Verdict == doctor.Fail }) {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&restore, "restore", false, "check what a running emberd restores instead of this host")
	cmd.AddCommand(newDoctorKVMCmd(a))
	return cmd
}

func newDoctorKVMCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "kvm",
		Short: "Say whether this host has usable KVM",
		Long: `Tell the two kinds of hosts apart: with usable KVM, emberd runs on the host;
without, it runs in the machine.

Exit status:
  0    this host has usable KVM
  1    it has not`,
		Example: `  emberctl doctor kvm || emberctl machine start`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			kvm := doctor.HostKVM()
			if err := a.printKVM(kvm); err != nil {
				return err
			}
			if !kvm.Usable {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
}

func (a *app) printKVM(kvm doctor.KVM) error {
	if a.json {
		return a.printJSON(struct {
			KVM    string `json:"kvm"`
			Reason string `json:"reason"`
		}{kvm.String(), kvm.Reason})
	}
	return a.printTable([][]string{{kvm.String(), kvm.Reason}})
}

func (a *app) printResults(results []doctor.Result) error {
	if a.json {
		return a.printJSON(results)
	}
	var rows [][]string
	for _, r := range results {
		rows = append(rows, []string{string(r.Verdict), r.Name, r.Reason})
		if r.Remedy != "" {
			rows = append(rows, []string{"", "", "→ " + r.Remedy})
		}
	}
	return a.printTable(rows)
}
