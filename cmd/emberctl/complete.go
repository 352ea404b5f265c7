package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// completeTimeout is how long a shell's completion waits for the daemon.
const completeTimeout = time.Second

// completeIDs completes sandbox ids: any number of different ones, or the first
// limit arguments only if limit is not 0.
func (a *app) completeIDs(limit int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if limit != 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		list, err := a.client().List(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, sb := range list {
			if !slices.Contains(args, sb.ID) {
				out = append(out, cobra.CompletionWithDesc(sb.ID, sb.LanguagePack))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// packFlag adds --pack, which completes to the packs that the daemon has.
func (a *app) packFlag(cmd *cobra.Command, pack *string) {
	cmd.Flags().StringVarP(pack, "pack", "p", "", "language pack (default: the daemon's, python)")
	// It fails only for a flag that does not exist or has one already.
	_ = cmd.RegisterFlagCompletionFunc("pack", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		info, err := a.client().Info(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return info.Packs, cobra.ShellCompDirectiveNoFileComp
	})
}
