package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/machine"
	"github.com/emberd/emberd/internal/paths"
)

const machineHelp = `A host without KVM cannot run microVMs. The machine is a host that can: one
QEMU process that emulates a CPU with virtualisation, and in it emberd, its
jailer and Firecracker, as on real hardware but many times slower. Its API is
forwarded to this host, so emberctl and curl don't notice the difference.

It needs no root. Emulation is for trying things out and for tests; it is not
an isolation boundary of its own.`

// newMachineCmd returns the commands that are about the machine.
func newMachineCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "machine",
		Short: "Run emberd on a host without KVM",
		Long:  machineHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var name string
	cmd.PersistentFlags().StringVar(&name, "name", machine.DefaultName, "the machine's name, to have more than one")
	locate := func() (machine.Machine, error) {
		return machine.Locate(name, paths.Data(a.dataDir), paths.Run(a.runDir))
	}
	cmd.AddCommand(
		newMachineStartCmd(a, locate),
		newMachineStopCmd(a, locate),
		newMachineStatusCmd(a, locate),
		newMachineExecCmd(a, locate),
		newMachineSuperviseCmd(a),
	)
	return cmd
}

// locator finds the machine that the flags name.
type locator func() (machine.Machine, error)

func newMachineStartCmd(a *app, locate locator) *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start the machine",
		Long: `Boot the machine and return when emberd in it answers. A machine that is up
already is left as it is. If starting fails or is interrupted, nothing is left.

The machine gets emberd from the directory of this emberctl, and a copy of the
packs, the kernel and Firecracker that emberctl setup has made.`,
		Example: `  emberctl machine start
  emberctl run 'print(6*7)'

  # a machine for tests, without emberd
  emberctl machine start --name tests --listen ''`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := locate()
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			report, stop := a.progress()
			defer stop()
			began := time.Now()
			cfg := machine.Config{
				Listen:     listen,
				Data:       paths.Data(a.dataDir),
				Bin:        filepath.Dir(self),
				Supervisor: []string{self, "machine", "supervise"},
			}
			err = m.Start(cmd.Context(), cfg, report)
			stop()
			if errors.Is(err, machine.ErrRunning) {
				return a.printRunningAlready(m, cfg)
			}
			if err != nil {
				return err
			}
			return a.printMachine(m, func(s machine.Status) string {
				return fmt.Sprintf("%s (took %.1fs)", describeMachine(s), time.Since(began).Seconds())
			})
		},
	}
	cmd.Flags().StringVar(&listen, "listen", machine.DefaultListen, "where emberd in the machine answers on this host; '' for a machine without emberd")
	return cmd
}

func newMachineStopCmd(a *app, locate locator) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "Stop the machine and every sandbox in it",
		Long: `Power the machine off, and clear up after one that stalled or crashed. Only its
disks stay, so that the next start is quick. Stopping what is not running is no
error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := locate()
			if err != nil {
				return err
			}
			report, stop := a.progress()
			defer stop()
			report.Step("stopping machine %s", m.Name)
			err = m.Stop(cmd.Context())
			stop()
			if err != nil && !errors.Is(err, machine.ErrNotRunning) {
				return err
			}
			return a.printMachine(m, describeMachine)
		},
	}
}

func newMachineStatusCmd(a *app, locate locator) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell what the machine is doing",
		Long: `Print whether the machine is stopped, starting, running, stalled or exited, and
where to look if something is wrong. The exit status is 0 if it is running.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			m, err := locate()
			if err != nil {
				return err
			}
			s, err := m.Status()
			if err != nil {
				return err
			}
			if err := a.printMachine(m, describeMachine); err != nil {
				return err
			}
			if s.State != machine.Running {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
}

func newMachineExecCmd(a *app, locate locator) *cobra.Command {
	var env []string
	var noCopy bool
	cmd := &cobra.Command{
		Use:   "exec [flags] -- PROGRAM [ARG...]",
		Short: "Run a static program of this host in the machine, as root",
		Long: fmt.Sprintf(`Copy PROGRAM into the machine, run it there as root with this command's input
and output, and remove it again. It must be linked statically: the machine has
no libraries and no shell. The machine has cgroup v2, network namespaces and a
/dev/kvm in which Firecracker boots, so it is where tests of such things run.

Exit status: that of PROGRAM (128+n if signal n ended it), or
  %d  the machine failed, so the program's own status is not known`, exitEmberd),
		Example: `  CGO_ENABLED=0 go test -c -o jail.test ./internal/jail
  emberctl machine exec -- ./jail.test -test.v

  # the emberctl that is in the machine
  emberctl machine exec --no-copy -- emberctl doctor`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := locate()
			if err != nil {
				return err
			}
			program := machine.Program{Path: args[0], Args: args[1:], Env: env, Inside: noCopy}
			if !noCopy {
				if program.Path, err = exec.LookPath(args[0]); err != nil {
					return usageError(err)
				}
			}
			exit, err := m.Exec(cmd.Context(), program, agent.Stdio{Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr})
			switch {
			case err != nil:
				return &exitError{exitEmberd, err}
			case exit.StartError != "":
				return &exitError{exitEmberd, fmt.Errorf("run %s: %s", program.Path, exit.StartError)}
			case exit.Code != 0:
				return &exitError{code: exit.Code}
			}
			return nil
		},
	}
	// What follows the program's name is the program's.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "set a variable for the program, as NAME=VALUE")
	cmd.Flags().BoolVar(&noCopy, "no-copy", false, "PROGRAM is in the machine already")
	return cmd
}

// newMachineSuperviseCmd is what "machine start" leaves behind.
func newMachineSuperviseCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "supervise",
		Short:  "Own a running machine (started by machine start)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return machine.Supervise(cmd.Context(), slog.New(slog.NewTextHandler(a.stderr, nil)))
		},
	}
}

// printRunningAlready prints the status of a machine that was to be started and
// is up, and warns if it is not what a start would have given.
func (a *app) printRunningAlready(m machine.Machine, cfg machine.Config) error {
	if old, err := m.Outdated(cfg); err == nil && old {
		_, _ = fmt.Fprintf(a.stderr, "emberctl: machine %s was up already, with other programs or packs than there are now\n"+
			"hint: emberctl machine stop, then start it again\n", m.Name)
	}
	return a.printMachine(m, describeMachine)
}

// printMachine prints the machine's status, as describe words it.
func (a *app) printMachine(m machine.Machine, describe func(machine.Status) string) error {
	s, err := m.Status()
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(s)
	}
	if _, err := fmt.Fprintln(a.stdout, describe(s)); err != nil {
		return err
	}
	if s.State == machine.Stalled || s.State == machine.Exited || s.DaemonRestarts > 0 {
		_, err = fmt.Fprintf(a.stdout, "console: %s\nemberd's log: %s\n", m.ConsoleLog(), m.DaemonLog())
	}
	return err
}

// describeMachine words a status for people.
func describeMachine(s machine.Status) string {
	text := fmt.Sprintf("machine %s is %s", s.Name, s.State)
	if s.State == machine.Running && s.Listen != "" {
		text += ", API at http://" + s.Listen
	}
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}
