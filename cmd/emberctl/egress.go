package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/emberd/emberd/api/rest"
)

const allowHelp = `
What --allow takes, once for each rule:
  pypi.org                  a host, on ports 80 and 443
  '*.pythonhosted.org'      all names below that one, but not itself
  db.example.org:5432,5433  a host on other ports
  ntp.example.org:123/udp   UDP instead of TCP
  203.0.113.0/24:5432       a range of addresses, or one; without ports all of them
  '[2001:db8::/32]:443'     IPv6 with ports is in brackets`

func newEgressCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "egress",
		Short: "Say what a sandbox may reach, and see what it was refused",
		Long: `A sandbox has no network unless it is created with --allow or --egress. Then it
reaches what its policy allows and nothing else, and what it was refused can be
seen. A policy is bound to names: an allowed name is resolved by emberd, and a
connection to it has to say that name in its first bytes (TLS, HTTP).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newEgressSetCmd(a), newEgressShowCmd(a), newEgressDenialsCmd(a))
	return cmd
}

func newEgressSetCmd(a *app) *cobra.Command {
	var want reach
	var add, none bool
	cmd := &cobra.Command{
		Use:   "set ID --allow RULE...",
		Short: "Change what a sandbox may reach",
		Long: `Set replaces what the sandbox ID may reach, and prints what it may reach then.
Connections that are not allowed any more are cut. The sandbox has to have been
created with --allow or --egress, as it has no network interface else.
` + allowHelp + `

With --file the policy is read from a file as JSON, as "emberctl egress show --json"
prints it; - is standard input.`,
		Example: `  emberctl egress set $id --allow pypi.org --allow files.pythonhosted.org
  emberctl egress set $id --add --allow api.example.org
  emberctl egress set $id --file policy.json
  emberctl egress set $id --none`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("which sandbox? give its ID")
			}
			if none && (add || want.given()) {
				return errors.New("--none goes with nothing else")
			}
			if !none && !want.given() {
				return errors.New("what may it reach? give --allow, --file or --none")
			}
			return want.check()
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			policy, err := want.policy(cmd.Context(), a)
			if err != nil {
				return err
			}
			if add {
				now, err := a.client().Egress(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				policy = added(now, policy)
			}
			set, err := a.client().SetEgress(cmd.Context(), args[0], policy)
			if err != nil {
				return err
			}
			return a.printEgress(set)
		},
		ValidArgsFunction: a.completeIDs(1),
	}
	want.flags(cmd, "file")
	cmd.Flags().BoolVar(&add, "add", false, "keep what it may reach already")
	cmd.Flags().BoolVar(&none, "none", false, "let it reach nothing")
	return cmd
}

// added is a policy with more rules, and with limits of its own if there are any.
func added(now rest.Egress, more rest.EgressRequest) rest.EgressRequest {
	policy := rest.EgressRequest{RateKiBps: now.RateKiBps, TotalMiB: now.TotalMiB}
	for _, rule := range now.Allow {
		policy.Allow = append(policy.Allow, rest.EgressRuleRequest(rule))
	}
	policy.Allow = append(policy.Allow, more.Allow...)
	if more.RateKiBps != 0 {
		policy.RateKiBps = more.RateKiBps
	}
	if more.TotalMiB != 0 {
		policy.TotalMiB = more.TotalMiB
	}
	return policy
}

func newEgressShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show what a sandbox may reach",
		Example: `  emberctl egress show $id
  emberctl egress show $id --json > policy.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			policy, err := a.client().Egress(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printEgress(policy)
		},
		ValidArgsFunction: a.completeIDs(1),
	}
}

func newEgressDenialsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "denials ID",
		Short: "Show what was refused to a sandbox",
		Long: `Denials shows what the sandbox ID wanted to reach and may not, why, how often, and
the --allow that would have let it. Where there is none, no rule can: the address
is private, reserved or the host's own, or the connection did not say its name.`,
		Example: `  emberctl egress denials $id
  emberctl egress denials $id --json | jq -r '.denials[].host'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			denials, err := a.client().EgressDenials(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(rest.EgressDenialList{Denials: denials})
			}
			rows := [][]string{{"REFUSED", "PROTOCOL", "TIMES", "REASON", "ALLOW"}}
			for _, d := range denials {
				allow := "-"
				if d.Rule != nil {
					allow = "--allow " + allowOf(*d.Rule)
				}
				rows = append(rows, []string{target(d), d.Protocol, strconv.FormatInt(d.Count, 10), d.Reason, allow})
			}
			return a.printTable(rows)
		},
		ValidArgsFunction: a.completeIDs(1),
	}
}

// printEgress prints what a sandbox may reach.
func (a *app) printEgress(policy rest.Egress) error {
	if a.json {
		return a.printJSON(policy)
	}
	rows := [][]string{{"ALLOW", "PORTS", "PROTOCOL"}}
	for _, rule := range policy.Allow {
		ports := portList(rule.Ports)
		if ports == "" {
			ports = "all"
		}
		rows = append(rows, []string{rule.Host + rule.CIDR, ports, rule.Protocol})
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	for _, limit := range []struct {
		value int
		text  string
	}{{policy.RateKiBps, "at most %d KiB a second in each direction\n"}, {policy.TotalMiB, "at most %d MiB in all\n"}} {
		if limit.value > 0 {
			if _, err := fmt.Fprintf(a.stdout, limit.text, limit.value); err != nil {
				return err
			}
		}
	}
	return nil
}

// reach is what a sandbox is to reach, as the command line has it.
type reach struct {
	rules       []string
	file        string
	fileFlag    string
	rate, total int
}

// flags adds the flags; the one for a file of JSON is called fileFlag.
func (r *reach) flags(cmd *cobra.Command, fileFlag string) {
	r.fileFlag = fileFlag
	f := cmd.Flags()
	f.StringArrayVar(&r.rules, "allow", nil, "let it reach HOST[:PORT,...][/udp], or a range of addresses likewise")
	f.StringVar(&r.file, fileFlag, "", "let it reach what the policy in this file of JSON allows; - is standard input")
	f.IntVar(&r.rate, "egress-rate", 0, "KiB a second that may go through in each direction (default: the daemon's)")
	f.IntVar(&r.total, "egress-total", 0, "MiB that may go through in all (default: the daemon's)")
	_ = cmd.RegisterFlagCompletionFunc("allow", cobra.NoFileCompletions)
}

// given tells whether there is to be any policy.
func (r *reach) given() bool { return len(r.rules) > 0 || r.file != "" }

// check complains about flags that make no sense.
func (r *reach) check() error {
	switch {
	case len(r.rules) > 0 && r.file != "":
		return fmt.Errorf("give --allow or --%s, not both", r.fileFlag)
	case r.rate < 0 || r.total < 0:
		return errors.New("a limit must not be negative")
	case r.file != "" && (r.rate != 0 || r.total != 0):
		return fmt.Errorf("with --%s the limits are in the file: rate_kib_s, total_mib", r.fileFlag)
	}
	if (r.rate != 0 || r.total != 0) && !r.given() {
		return errors.New("--egress-rate and --egress-total need --allow")
	}
	for _, text := range r.rules {
		if _, err := parseAllow(text); err != nil {
			return err
		}
	}
	return nil
}

// policy returns what is asked for.
func (r *reach) policy(ctx context.Context, a *app) (rest.EgressRequest, error) {
	if r.file != "" {
		return r.read(ctx, a)
	}
	policy := rest.EgressRequest{Allow: []rest.EgressRuleRequest{}, RateKiBps: r.rate, TotalMiB: r.total}
	for _, text := range r.rules {
		rule, err := parseAllow(text)
		if err != nil {
			return policy, err
		}
		policy.Allow = append(policy.Allow, rule)
	}
	return policy, nil
}

// read reads a policy from a file.
func (r *reach) read(ctx context.Context, a *app) (policy rest.EgressRequest, err error) {
	var text []byte
	if r.file == "-" {
		text, err = a.readStdin(ctx)
	} else {
		text, err = os.ReadFile(r.file)
	}
	if err != nil {
		return policy, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&policy); err != nil {
		return policy, fmt.Errorf("the policy in %s: %w", r.file, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return policy, fmt.Errorf("the policy in %s: something follows it", r.file)
	}
	if policy.Allow == nil {
		return policy, fmt.Errorf(`the policy in %s has no "allow"`, r.file)
	}
	return policy, nil
}

// parseAllow reads HOST[:PORT,...][/udp], where an address or a range of them may
// stand for HOST. What the daemon is to judge is left to it.
func parseAllow(text string) (rest.EgressRuleRequest, error) {
	var rule rest.EgressRuleRequest
	where := text
	for _, protocol := range []string{"tcp", "udp"} {
		if rest, ok := strings.CutSuffix(where, "/"+protocol); ok {
			where, rule.Protocol = rest, protocol
			break
		}
	}
	ports := ""
	if inside, ok := strings.CutPrefix(where, "["); ok {
		where, ports, ok = strings.Cut(inside, "]")
		if !ok || ports != "" && ports[0] != ':' || !isRange(where) {
			return rule, fmt.Errorf("--allow %q: in brackets there is an IPv6 address or range, and behind them :PORT", text)
		}
		ports = strings.TrimPrefix(ports, ":")
	} else if at := strings.LastIndexByte(where, ':'); at >= 0 && !isRange(where) {
		where, ports = where[:at], where[at+1:]
		if ports == "" {
			return rule, fmt.Errorf("--allow %q: which port?", text)
		}
	}
	if where == "" {
		return rule, fmt.Errorf("--allow %q: which host? it takes HOST[:PORT,...][/udp] or a range of addresses", text)
	}
	if isRange(where) {
		rule.CIDR = where
	} else {
		rule.Host = where
	}
	if ports == "" {
		return rule, nil
	}
	for word := range strings.SplitSeq(ports, ",") {
		port, err := strconv.ParseUint(word, 10, 16)
		if err != nil || port == 0 {
			return rule, fmt.Errorf("--allow %q: %q is no port; ports go from 1 to 65535", text, word)
		}
		rule.Ports = append(rule.Ports, int(port))
	}
	return rule, nil
}

// isRange tells whether text is an address or a range of them.
func isRange(text string) bool {
	_, err := netip.ParseAddr(text)
	if _, perr := netip.ParsePrefix(text); perr == nil {
		err = nil
	}
	return err == nil
}

// allowOf is a rule as --allow takes it, quoted for a shell where it has to be.
func allowOf(rule rest.EgressRule) string {
	text := rule.Host + rule.CIDR
	ports := portList(rule.Ports)
	if rule.Host != "" && rule.Protocol != "udp" && slices.Equal(rule.Ports, []int{80, 443}) {
		ports = ""
	}
	if ports != "" {
		if strings.Contains(rule.CIDR, ":") {
			text = "[" + text + "]"
		}
		text += ":" + ports
	}
	if rule.Protocol == "udp" {
		text += "/udp"
	}
	if strings.ContainsAny(text, "*[]") {
		text = "'" + text + "'"
	}
	return text
}

func portList(ports []int) string {
	words := make([]string, len(ports))
	for i, port := range ports {
		words[i] = strconv.Itoa(port)
	}
	return strings.Join(words, ",")
}

// target is what somebody wanted to reach.
func target(d rest.EgressDenial) string {
	text := d.Host
	if text == "" {
		text = d.Addr
	}
	if d.Port != 0 {
		text = net.JoinHostPort(text, strconv.Itoa(d.Port))
	}
	if d.Host != "" && d.Addr != "" {
		text += " (" + d.Addr + ")"
	}
	return text
}

// maxTold is how many refusals are told of one by one.
const maxTold = 16

// tellDenied says what was refused to a sandbox while a program ran.
func (a *app) tellDenied(denials []rest.EgressDenial) {
	for i, d := range denials {
		if i == maxTold {
			say(a.stderr, "emberd refused %d other things; --json has all of them\n", len(denials)-i)
			return
		}
		say(a.stderr, "emberd refused %s\n", refusal(d))
	}
}

// refusal is a sentence about what was refused.
func refusal(d rest.EgressDenial) string {
	text := target(d)
	switch d.Protocol {
	case "dns":
		text = "to resolve " + text
	case "tcp":
	default:
		text += " (" + d.Protocol + ")"
	}
	if d.Count > 1 {
		text += fmt.Sprintf(", %d times", d.Count)
	}
	why := map[string]string{
		"forbidden_address": ": a private or reserved address, or the host's own",
		"name_not_allowed":  ": the connection was for a name that is not allowed at that address",
		"no_name":           ": the connection did not say which name it was for",
		"unresolved":        ": no resolver of the host answered for it",
		"limit":             ": a limit of the sandbox's egress",
	}[d.Reason]
	if d.Rule == nil {
		return text + why
	}
	return text + why + "; allow it with --allow " + allowOf(*d.Rule)
}
