package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/version"
	"github.com/emberd/emberd/internal/x/manpage"
)

// app is what every command has: the three streams and the global flags.
type app struct {
	stdin                 io.Reader
	stdout, stderr        io.Writer
	json                  bool
	addr, dataDir, runDir string

	daemon *client.Client // use client()
}

const rootHelp = `emberctl runs code in microVMs through emberd, and sets up what emberd needs.

A sandbox is a Firecracker microVM of its own, with a language pack for its
root filesystem. It starts clean, has no network but what it is allowed to reach,
and is gone when deleted.`

const rootExamples = `  # one program in a sandbox of its own
  emberctl run 'print(6*7)'

  # a sandbox that keeps its files between programs
  id=$(emberctl create)
  emberctl exec $id 'open("/tmp/x", "w").write("hello")'
  emberctl exec $id 'print(open("/tmp/x").read())'
  emberctl rm $id

  # no daemon yet? fetch and build everything, then start one
  emberctl setup
  emberctl machine start   # where there is no KVM; else run emberd as root`

const exitStatusHelp = `Exit status:
  0    it worked
  1    it did not
  2    the command line makes no sense
  130  interrupted`

// newRoot returns the whole command tree for a.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "emberctl",
		Short:         "Run code in microVMs",
		Long:          rootHelp + "\n\n" + exitStatusHelp,
		Example:       rootExamples,
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// How far from a command's name a word may be to be taken for a slip.
		SuggestionsMinimumDistance: 2,
		Args:                       noSuchCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVar(&a.addr, "addr", cmp.Or(os.Getenv("EMBERD_ADDR"), client.DefaultAddr), "where emberd listens: HOST:PORT, a URL or unix://PATH ($EMBERD_ADDR)")
	f.StringVar(&a.dataDir, "data-dir", cmp.Or(os.Getenv("EMBERD_DATA_DIR"), paths.DefaultData), "where packs, kernel, keys and machine are kept ($EMBERD_DATA_DIR)")
	f.StringVar(&a.runDir, "run-dir", cmp.Or(os.Getenv("EMBERD_RUN_DIR"), paths.DefaultRun), "where the state of what runs is kept ($EMBERD_RUN_DIR)")
	f.BoolVar(&a.json, "json", false, "print JSON")

	root.AddCommand(
		newRunCmd(a),
		newCreateCmd(a),
		newExecCmd(a),
		newAttachCmd(a),
		newPsCmd(a),
		newKillCmd(a),
		newEgressCmd(a),
		newRmCmd(a),
		newLsCmd(a),
		newInspectCmd(a),
		newInfoCmd(a),
		newTopCmd(a),
		newEventsCmd(a),
		newPoolCmd(a),
		newPackCmd(a),
		newTemplateCmd(a),
		newKeyCmd(a),
		newMachineCmd(a),
		newSetupCmd(a),
		newDoctorCmd(a),
		newSupportBundleCmd(a),
		newBenchCmd(a),
		manpage.Command("1"),
	)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError(err) })
	wrapArgs(root)
	return root
}

// noSuchCommand complains about arguments of emberctl itself: what was meant
// for a command's name is none.
func noSuchCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		return fmt.Errorf("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// wrapArgs makes every complaint about arguments in the tree a usage error.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError(err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// client returns a client of the daemon the flags name.
func (a *app) client() *client.Client {
	if a.daemon == nil {
		a.daemon = client.New(a.addr, client.WithAPIKey(os.Getenv("EMBERD_API_KEY")))
	}
	return a.daemon
}
