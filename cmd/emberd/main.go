// Command emberd hands out jailed Firecracker microVMs over HTTP.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/version"
)

const help = `emberd serves microVMs for code that nobody has vetted.

Each sandbox is a Firecracker microVM in a jail of its own: its own user id,
root directory, namespaces and cgroup, and no network. emberd needs root, KVM
and cgroup v2, and what "emberctl setup" installs.

The API is served on 127.0.0.1 and on a Unix socket that root may use. Once
"emberctl key create" has made an API key, TCP asks for one; the socket does
not. An address that other hosts can reach takes keys and TLS.

On SIGINT or SIGTERM it deletes every sandbox and exits.`

const example = `  # set up once, then serve on 127.0.0.1:7777
  emberctl setup && emberd

  # serve other hosts
  emberctl key create --name laptop
  emberd --listen 192.0.2.7:7777 --allow-host box.example:7777 --tls-cert box.pem --tls-key box.key

  # no KVM on this host? run emberd in the machine
  emberctl machine start`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks, the second one ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := newCmd().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "emberd: %v\n", err)
		os.Exit(1)
	}
}

func newCmd() *cobra.Command {
	cfg := daemon.NewConfig()
	level := slog.LevelInfo
	cmd := &cobra.Command{
		Use:           "emberd",
		Short:         "Serve jailed Firecracker microVMs over HTTP",
		Long:          help,
		Example:       example,
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("socket") {
				cfg.Socket = cfg.RunDir.Socket()
			}
			if !cmd.Flags().Changed("pool") {
				cfg.Pool = daemon.DefaultPool(cfg)
			}
			cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			d, err := daemon.New(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return d.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	listenFlags(f, &cfg)
	f.StringVar((*string)(&cfg.DataDir), "data-dir", string(cfg.DataDir), "where kernel, packs and jails are kept")
	f.StringVar((*string)(&cfg.RunDir), "run-dir", string(cfg.RunDir), "where the state of running sandboxes is kept")
	f.StringVar(&cfg.Init, "init", cfg.Init, "the emberd-init executable that becomes PID 1 of every guest")
	limitFlags(f, &cfg)
	poolFlag(f, &cfg.Pool)
	f.TextVar(&cfg.Users, "vmm-users", cfg.Users, "the user ids, and group ids, that VMMs are given: FIRST-LAST")
	f.DurationVar(&cfg.BootTimeout, "boot-timeout", cfg.BootTimeout, "how long a microVM may take to become ready")
	f.BoolVar(&cfg.Templates, "templates", cfg.Templates, "restore microVMs from templates instead of booting each")
	f.IntVar(&cfg.Shells, "shells", cfg.Shells, "how many VMMs to keep ready, in jails of their own, for microVMs to be restored in")
	f.TextVar(&level, "log-level", level, "log what is at least this important: debug, info, warn or error")
	return cmd
}
