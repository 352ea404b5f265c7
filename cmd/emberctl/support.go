package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/internal/doctor"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/support"
)

func newSupportBundleCmd(a *app) *cobra.Command {
	var output, log string
	cmd := &cobra.Command{
		Use:   "support-bundle",
		Short: "Collect what is needed to find out what is wrong",
		Long: `Support-bundle writes an archive (tar.gz) with what somebody needs who is to help:
the doctor's results, settings, versions, metrics, the last events, the end of the
daemon's log and facts about this host. A daemon that does not answer makes no
difference to the rest. Run it as root to have all of it.

Keys, tokens and passwords are left out as far as they are recognised, and so is
what programs were and wrote. Names of hosts, directories and packs are in it: look
at it before you send it.`,
		Example: `  sudo emberctl support-bundle
  sudo emberctl support-bundle --output /tmp/b.tar.gz && tar tzf /tmp/b.tar.gz`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			run := paths.Run(a.runDir)
			path := cmp.Or(output, "emberd-support-"+time.Now().Format("20060102-150405")+".tar.gz")
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			parts, err := support.Write(cmd.Context(), f, support.Config{
				Client:   a.client(),
				Doctor:   doctor.NewEnv(paths.Data(a.dataDir), run),
				Settings: support.Settings(run, daemonProgram()),
				Log:      support.Log(log, run),
			})
			if err := errors.Join(err, f.Close()); err != nil {
				return errors.Join(err, os.Remove(path))
			}
			return a.printParts(path, parts)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "the file to write, which must not exist (default: one with the time in its name, here)")
	cmd.Flags().StringVar(&log, "log", "", "the daemon's log, if it is neither in the journal nor a machine's")
	return cmd
}

// daemonProgram is the emberd that is installed with this emberctl, or else the one
// on PATH.
func daemonProgram() string {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "emberd")
		if path, err := exec.LookPath(beside); err == nil {
			return path
		}
	}
	return "emberd"
}

// printParts says what is in a bundle.
func (a *app) printParts(path string, parts []support.Part) error {
	type part struct {
		Name  string `json:"name"`
		About string `json:"about"`
		Bytes int    `json:"bytes"`
		Error string `json:"error,omitempty"`
	}
	all := make([]part, len(parts))
	rows := [][]string{}
	for i, p := range parts {
		all[i] = part{Name: p.Name, About: p.About, Bytes: p.Bytes}
		about := p.About
		if p.Err != nil {
			all[i].Error = p.Err.Error()
			about = "not to be had: " + firstLine(p.Err.Error())
		}
		rows = append(rows, []string{p.Name, fmt.Sprintf("%d bytes", p.Bytes), about})
	}
	if a.json {
		return a.printJSON(struct {
			Path  string `json:"path"`
			Parts []part `json:"parts"`
		}{path, all})
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s is written. Look at it before you send it to anybody: tar xzf %s\n", path, path)
	return err
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
