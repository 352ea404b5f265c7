// Package manpage writes the manual page of a program from its commands.
//
// The one idea: what --help says is the manual, so there is one text to keep
// right. A page has all commands of its program and is the same on every host
// and every day.
package manpage

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Command returns a hidden command that prints the manual page of the program it
// is added to. The section is that of the manual: 1, or 8 for what root runs.
func Command(section string) *cobra.Command {
	return &cobra.Command{
		Use:    "man",
		Short:  "Print the manual page",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return Write(cmd.OutOrStdout(), cmd.Root(), section)
		},
	}
}

// Write writes the manual page of the program whose root command is given.
func Write(w io.Writer, root *cobra.Command, section string) error {
	p := &page{}
	p.linef(`.TH %s %s "" "%s" "%s"`, strings.ToUpper(root.Name()), section, escape(root.Version), root.Name())
	p.heading("NAME")
	p.linef(`%s \- %s`, root.Name(), escape(root.Short))
	p.heading("SYNOPSIS")
	p.linef(`.B %s`, escape(root.UseLine()))
	if root.HasAvailableSubCommands() {
		p.linef(".br\n.B %s \\fICOMMAND\\fR [\\fIflags\\fR]", root.Name())
	}
	p.heading("DESCRIPTION")
	p.text(root.Long)
	if root.HasAvailableSubCommands() {
		p.heading("COMMANDS")
		p.commands(root)
	}
	p.heading("OPTIONS")
	p.flags(root.LocalFlags())
	if root.HasExample() {
		p.heading("EXAMPLES")
		p.verbatim(root.Example)
	}
	_, err := io.WriteString(w, p.String())
	return err
}

// page is a manual page in the making, in roff.
type page struct{ strings.Builder }

func (p *page) linef(format string, args ...any) { _, _ = fmt.Fprintf(p, format+"\n", args...) }

func (p *page) heading(title string) { p.linef(".SH %s", title) }

// commands writes the commands below cmd, each with those below it.
func (p *page) commands(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		if !sub.IsAvailableCommand() || sub.Name() == "help" {
			continue
		}
		if sub.Runnable() && !sub.HasAvailableSubCommands() {
			p.linef(".SS %s", escape(sub.UseLine()))
			if sub.Long != "" {
				p.text(sub.Long)
			} else {
				p.text(sub.Short + ".")
			}
			p.flags(sub.NonInheritedFlags())
			if sub.HasExample() {
				p.linef(".PP")
				p.verbatim(sub.Example)
			}
		}
		p.commands(sub)
	}
}

// flags writes a list of flags.
func (p *page) flags(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := `\fB` + escape("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			name = `\fB` + escape("-"+f.Shorthand) + `\fR, ` + name
		}
		kind, usage := pflag.UnquoteUsage(f)
		if kind != "" {
			name += ` \fI` + escape(kind) + `\fR`
		}
		switch f.DefValue {
		case "", "0", "false", "[]", "0s":
		default:
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		p.linef(".TP\n%s\n%s", name, escape(usage))
	})
}

// text writes paragraphs. Lines that are indented stay as they are.
func (p *page) text(s string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if i > 0 {
			p.linef(".PP")
		}
		flowing, rest, indented := strings.Cut("\n"+paragraph, "\n  ")
		if flowing = strings.TrimSpace(flowing); flowing != "" {
			p.linef("%s", escape(flowing))
		}
		if indented {
			p.verbatim("  " + rest)
		}
	}
}

// verbatim writes lines as they are.
func (p *page) verbatim(s string) { p.linef(".nf\n%s\n.fi", escape(strings.TrimRight(s, "\n"))) }

// escape makes text mean itself in roff.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
