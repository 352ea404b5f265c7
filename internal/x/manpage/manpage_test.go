package manpage

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func example() *cobra.Command {
	nothing := func(*cobra.Command, []string) {}
	root := &cobra.Command{
		Use: "tool", Short: "Do things", Version: "1.2-x", Run: nothing,
		Long:    "tool does things.\n.hidden files, too, and \\n.\n\nExit status:\n  0  it worked\n  1  it did not",
		Example: "  tool --fast\n  'quoted'",
	}
	root.PersistentFlags().Int("count", 3, "how many")
	sub := &cobra.Command{Use: "sub NAME", Short: "Do one", Run: nothing}
	sub.Flags().BoolP("all", "a", false, "every one")
	group := &cobra.Command{Use: "group", Short: "Things", Run: nothing}
	group.AddCommand(&cobra.Command{Use: "inner", Short: "Do it inside", Run: nothing})
	root.AddCommand(sub, group, &cobra.Command{Use: "secret", Hidden: true, Run: nothing}, Command("8"))
	return root
}

func TestWrite(t *testing.T) {
	root := example()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs([]string{"man"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	const want = `.TH TOOL 8 "" "1.2\-x" "tool"
.SH NAME
tool \- Do things
.SH SYNOPSIS
.B tool [flags]
.br
.B tool \fICOMMAND\fR [\fIflags\fR]
.SH DESCRIPTION
tool does things.
\&.hidden files, too, and \en.
.PP
Exit status:
.nf
  0  it worked
  1  it did not
.fi
.SH COMMANDS
`
	if !strings.HasPrefix(out.String(), want) {
		t.Errorf("got\n%s", out.String())
	}
	for _, s := range []string{
		".SS tool sub NAME [flags]\nDo one.\n.TP\n\\fB\\-a\\fR, \\fB\\-\\-all\\fR\nevery one\n",
		".SS tool group inner",
		".SH OPTIONS\n.TP\n\\fB\\-\\-count\\fR \\fIint\\fR\nhow many (default 3)\n",
		".SH EXAMPLES\n.nf\n  tool \\-\\-fast\n  'quoted'\n.fi\n",
	} {
		if !strings.Contains(out.String(), s) {
			t.Errorf("there is no %q in\n%s", s, out.String())
		}
	}
	if strings.Contains(out.String(), "secret") || strings.Contains(out.String(), "manual page") {
		t.Errorf("a hidden command is in\n%s", out.String())
	}
}

// TestRoff has groff read a page, where there is one.
func TestRoff(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not installed")
	}
	var out bytes.Buffer
	if err := Write(&out, example(), "8"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(groff, "-man", "-Tascii", "-ww", "-P-c")
	cmd.Stdin = &out
	shown, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(shown), "warning") || !strings.Contains(string(shown), ".hidden files, too, and \\n.") {
		t.Errorf("%v\n%s", err, shown)
	}
}
