// Command emberd hands out jailed Firecracker microVMs over HTTP.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/config"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/version"
	"github.com/emberd/emberd/internal/x/manpage"
	"github.com/emberd/emberd/internal/x/systemd"
)

const help = `emberd serves microVMs for code that nobody has vetted.

Each sandbox is a Firecracker microVM in a jail of its own: its own user id,
root directory, namespaces and cgroup, and no network but what it is allowed to
reach. emberd needs root, KVM and cgroup v2, and what "emberctl setup" installs.

The API is served on 127.0.0.1 and on a Unix socket that root may use. Once
"emberctl key create" has made an API key, TCP asks for one; the socket does
not. An address that other hosts can reach takes keys and TLS.

Every setting can be given as a flag, as an environment variable (--max-memory
is EMBERD_MAX_MEMORY) or in a file, in which it has the flag's name; what comes
first here wins. "emberd config explain" says what is in force, and why.

On SIGINT or SIGTERM it exits when requests that are under way are done, and the
sandboxes go on: the next emberd takes them over, as it does when one was killed.
With --on-exit=stop they are deleted instead.`

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
		// An error that is several has a line for each.
		fmt.Fprintf(os.Stderr, "emberd: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nemberd: "))
		os.Exit(1)
	}
}

// program is what emberd has been told.
type program struct {
	cfg      daemon.Config
	log      logging
	settings *config.Table
	file     string
}

// newProgram returns an emberd that has been told nothing.
func newProgram() *program {
	p := &program{cfg: daemon.NewConfig()}
	p.settings = settings(&p.cfg, &p.log)
	return p
}

func newCmd() *cobra.Command {
	p := newProgram()
	cmd := &cobra.Command{
		Use:               "emberd",
		Short:             "Serve jailed Firecracker microVMs over HTTP",
		Long:              help,
		Example:           example,
		Version:           version.Version,
		Args:              cobra.NoArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		RunE:              func(cmd *cobra.Command, _ []string) error { return p.serve(cmd.Context()) },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&p.file, "config", "", "file of settings ($EMBERD_CONFIG); by default "+paths.DefaultConfig+" if there is one")
	p.settings.AddTo(f)
	cmd.SetUsageFunc(p.usage)
	cmd.AddCommand(newConfigCmd(p), manpage.Command("8"))
	return cmd
}

// serve runs the daemon until ctx ends.
func (p *program) serve(ctx context.Context) error {
	if err := p.load(); err != nil {
		return err
	}
	p.cfg.Log = p.log.logger(os.Stderr)
	var err error
	if p.cfg.Manager, err = systemd.FromEnvironment(); err != nil {
		return err
	}
	d, err := daemon.New(ctx, p.cfg)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// usage prints what follows a command's description in its help. The settings are
// too many for one list, and only emberd itself lists them.
func (p *program) usage(cmd *cobra.Command) error {
	w := cmd.OutOrStderr()
	_, _ = fmt.Fprintf(w, "Usage:\n  %s\n", cmd.UseLine())
	if cmd.HasExample() {
		_, _ = fmt.Fprintf(w, "\nExamples:\n%s\n", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		_, _ = fmt.Fprintf(w, "\nCommands:\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				_, _ = fmt.Fprintf(w, "  %-10s %s\n", sub.Name(), sub.Short)
			}
		}
	}
	_, _ = fmt.Fprintf(w, "\nFlags:\n")
	flags := cmd.LocalNonPersistentFlags()
	flags.AddFlag(cmd.Root().PersistentFlags().Lookup("config"))
	settings := p.settings.Usage()
	if cmd.HasParent() {
		settings = fmt.Sprintf("\nThe flags for settings, which `%s --help` lists, are taken as well.\n", cmd.Root().Name())
	}
	_, err := fmt.Fprint(w, flags.FlagUsages(), settings)
	return err
}
