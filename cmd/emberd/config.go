package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/config"
	"github.com/emberd/emberd/internal/paths"
)

// load gives p what file and environment say. A file that was asked for has to
// be there.
func (p *program) load() error {
	file := cmp.Or(p.file, os.Getenv("EMBERD_CONFIG"))
	if file == "" {
		if _, err := os.Stat(paths.DefaultConfig); !errors.Is(err, fs.ErrNotExist) {
			file = paths.DefaultConfig
		}
	}
	if err := p.settings.Load(file, os.Getenv); err != nil {
		return err
	}
	derive(p.settings, &p.cfg)
	return nil
}

func newConfigCmd(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Explain and check settings",
		Long: `Explain and check emberd's settings.

A flag beats an environment variable, which beats the file, which beats the
default. The file is TOML, one line for each key: max-memory = 4096.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newExplainCmd(p), newCheckCmd(p))
	return cmd
}

func newExplainCmd(p *program) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain [KEY...]",
		Short: "Say what is in force, and where it comes from",
		Long: `Print each setting with its value, where that comes from, its default, what it
is for, and its flag and environment variable.

The values are those that emberd would have if it were started now, like this.
A daemon that a unit starts has the unit's environment.`,
		Example: `  emberd config explain
  emberd config explain listen socket
  emberd config explain --json --max-memory 4096`,
		RunE: func(cmd *cobra.Command, keys []string) error {
			if err := p.load(); err != nil {
				return err
			}
			all := p.settings.Explain()
			for _, k := range keys {
				if !slices.ContainsFunc(all, func(s config.Setting) bool { return s.Key == k }) {
					return fmt.Errorf("there is no setting %q; `emberd config explain` lists those there are", k)
				}
			}
			if len(keys) > 0 {
				all = slices.DeleteFunc(all, func(s config.Setting) bool { return !slices.Contains(keys, s.Key) })
			}
			if !asJSON {
				return config.WriteExplained(cmd.OutOrStdout(), all)
			}
			out := json.NewEncoder(cmd.OutOrStdout())
			out.SetIndent("", "  ")
			out.SetEscapeHTML(false)
			return out.Encode(all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCheckCmd(p *program) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a file of settings",
		Long: `Check a file of settings: that it is TOML, that emberd has these settings, that
each takes its value, and that the limits make sense together. Every line that
is wrong is reported, and the exit status is 1 then.`,
		Example: `  emberd config check /etc/emberd/emberd.toml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := p.settings.Load(args[0], func(string) string { return "" })
			if err == nil {
				err = errors.Join(p.cfg.Limits.Check(), p.cfg.Egress.Check())
			}
			if !asJSON {
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is fine\n", args[0])
				}
				return err
			}
			verdict := struct {
				File  string `json:"file"`
				OK    bool   `json:"ok"`
				Error string `json:"error,omitempty"`
			}{File: args[0], OK: err == nil}
			if err != nil {
				verdict.Error = err.Error()
			}
			return errors.Join(err, json.NewEncoder(cmd.OutOrStdout()).Encode(verdict))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
