package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/apikey"
	"github.com/emberd/emberd/internal/paths"
)

const keyHelp = `API keys say who may use emberd over TCP. Without any, everybody on this host may,
and nobody else. From the first one on every request needs one, except through
the Unix socket: emberctl --addr unix:///run/emberd/emberd.sock.

Keys are kept in the data directory, as hashes. A running emberd takes notice of
changes within a second. Revoking the last key leaves nobody in; it is removing
the file keys.json that asks for none again.

emberctl sends the key that is in $EMBERD_API_KEY.`

// newKeyCmd returns the commands that are about API keys.
func newKeyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make and revoke API keys",
		Long:  keyHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeyCreateCmd(a), newKeyLsCmd(a), newKeyRevokeCmd(a))
	return cmd
}

// keyFile is where the daemon looks for keys.
func (a *app) keyFile() string { return paths.Data(a.dataDir).Keys() }

// keyInfo is a key as emberctl prints it.
type keyInfo struct {
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	Key       string    `json:"key,omitempty"` // only when it is made
}

func newKeyCreateCmd(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key and print it, this once",
		Example: `  export EMBERD_API_KEY=$(emberctl key create --name laptop)
  curl -H "Authorization: Bearer $EMBERD_API_KEY" localhost:7777/sandboxes`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			key, made, err := apikey.Create(a.keyFile(), name)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(keyInfo{ID: made.ID, Name: made.Name, CreatedAt: made.CreatedAt, Key: key})
			}
			_, err = fmt.Fprintln(a.stdout, key)
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "whose it is, for people")
	return cmd
}

func newKeyLsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the keys, oldest first",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			keys, err := apikey.List(a.keyFile())
			if err != nil {
				return err
			}
			infos := make([]keyInfo, len(keys))
			rows := [][]string{{"ID", "NAME", "AGE"}}
			for i, k := range keys {
				infos[i] = keyInfo{ID: k.ID, Name: k.Name, CreatedAt: k.CreatedAt}
				rows = append(rows, []string{k.ID, k.Name, age(time.Since(k.CreatedAt))})
			}
			if a.json {
				return a.printJSON(map[string]any{"keys": infos})
			}
			return a.printTable(rows)
		},
	}
}

func newKeyRevokeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID...",
		Aliases: []string{"rm"},
		Short:   "Revoke keys, and end the requests they opened",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, ids []string) error {
			var errs []error
			for _, id := range ids {
				errs = append(errs, apikey.Revoke(a.keyFile(), id))
			}
			return errors.Join(errs...)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			keys, err := apikey.List(a.keyFile())
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			var out []cobra.Completion
			for _, k := range keys {
				out = append(out, cobra.CompletionWithDesc(k.ID, k.Name))
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
}
