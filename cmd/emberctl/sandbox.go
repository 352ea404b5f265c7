package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
)

func newCreateCmd(a *app) *cobra.Command {
	var want wish
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a sandbox and print its id",
		Long: `Create boots a microVM and prints the sandbox's id when it takes programs.
Interrupted before that, it leaves nothing behind.

With --idempotency-key it can be repeated when it is not known what became of it:
it creates one sandbox, and prints the same id for 24 hours. Interrupted, it then
leaves the sandbox to the next try.

A sandbox is deleted when its lifetime is over or when no program has run in it
for its idle timeout; emberctl ls shows when that will be.

It has no network unless --allow or --egress says what it may reach; emberctl egress
changes that, and shows what was refused.
` + allowHelp,
		Example: `  id=$(emberctl create --pack shell --memory 512 --lifetime 10m)
  emberctl exec $id 'echo hello'
  emberctl rm $id
  emberctl create --allow pypi.org --allow files.pythonhosted.org
  until id=$(emberctl create --idempotency-key job-4711); do sleep 1; done`,
		Args: func(cmd *cobra.Command, args []string) error {
			return errors.Join(cobra.NoArgs(cmd, args), want.reach.check())
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := want.settle(cmd.Context(), a); err != nil {
				return err
			}
			show, stop := a.progress()
			defer stop()
			id, err := a.create(cmd.Context(), show, want)
			stop()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(rest.CreateResponse{ID: id})
			}
			_, err = fmt.Fprintln(a.stdout, id)
			return err
		},
	}
	want.flags(a, cmd)
	cmd.Flags().StringVar(&want.key, "idempotency-key", "", "create one sandbox however often this is repeated with the same key and flags")
	return cmd
}

func newRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rm ID...",
		Aliases: []string{"delete"},
		Short:   "Delete sandboxes",
		Long: `Rm ends the microVMs of the sandboxes and everything that runs in them. One that
cannot be deleted does not stop the others.`,
		Example: `  emberctl rm sb_a1b2c3d4e5f6
  emberctl ls --json | jq -r '.sandboxes[].id' | xargs emberctl rm`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c := a.client()
			var errs []error
			for _, id := range ids {
				if err := c.Delete(cmd.Context(), id); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", id, err))
				}
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: a.completeIDs(0),
	}
}

func newLsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the sandboxes, oldest first",
		Example: `  emberctl ls
  emberctl ls --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().List(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(rest.SandboxList{Sandboxes: list})
			}
			rows := [][]string{{"ID", "PACK", "STATE", "VCPUS", "MEMORY", "DISK", "AGE", "EXPIRES"}}
			now := time.Now()
			for _, sb := range list {
				rows = append(rows, []string{
					sb.ID, sb.LanguagePack, sb.State, strconv.Itoa(sb.GuestVCPUs),
					fmt.Sprintf("%d MiB", sb.GuestRAMMiB), fmt.Sprintf("%d MiB", sb.Limits.DiskMiB),
					age(now.Sub(sb.CreatedAt)), expiry(sb, now),
				})
			}
			return a.printTable(rows)
		},
	}
}

func newInfoCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info",
		Short: "Describe the daemon",
		Example: `  emberctl info
  emberctl info --json | jq -r .kvm`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := a.client().Info(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(info)
			}
			return a.printTable([][]string{
				{"emberd", info.Versions.Emberd},
				{"firecracker", info.Versions.Firecracker},
				{"host kernel", info.Versions.HostKernel},
				{"kvm", info.KVM},
				{"guest", fmt.Sprintf("%d vCPU, %d MiB", info.GuestVCPUs, info.GuestRAMMiB)},
				{"boot path", info.BootPath},
				{"packs", strings.Join(info.Packs, ", ")},
				{"egress", yesNo(info.Egress)},
				{"data", info.WorkDir},
			})
		},
	}
}

func yesNo(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// age returns d to a precision that suits a person.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
