package real

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// ruleset is what the kernel says of the packet filter in the namespace of a
// process, in words: tables, chains, rules, sets and their elements, but for what
// changes with each packet and with time.
func ruleset(t testing.TB, pid int) string {
	t.Helper()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		fmt.Fprintf(&b, "table %s of family %d\n", table.Name, table.Family)
		sets, err := c.GetSets(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sets {
			fmt.Fprintf(&b, "  set %s of %s, interval %v, dynamic %v, timeout %v\n", s.Name, s.KeyType.Name, s.Interval, s.Dynamic, s.Timeout)
			if s.HasTimeout {
				continue // what was refused, or resolved, for a while
			}
			elements, err := c.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			var keys []string
			for _, e := range elements {
				keys = append(keys, fmt.Sprintf("    %x to %x, end %v\n", e.Key, e.KeyEnd, e.IntervalEnd))
			}
			slices.Sort(keys)
			b.WriteString(strings.Join(keys, ""))
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range chains {
		fmt.Fprintf(&b, "chain %s of %s", chain.Name, chain.Table.Name)
		if chain.Hooknum != nil {
			fmt.Fprintf(&b, " at hook %d, priority %d", *chain.Hooknum, *chain.Priority)
		}
		if chain.Policy != nil {
			fmt.Fprintf(&b, ", policy %d", *chain.Policy)
		}
		b.WriteString("\n")
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			b.WriteString("  rule:")
			for _, e := range r.Exprs {
				switch e := e.(type) {
				case *expr.Counter:
					b.WriteString(" counter")
				case *expr.Quota:
					fmt.Fprintf(&b, " quota %d over %v", e.Bytes, e.Over)
				case *expr.Dynset:
					fmt.Fprintf(&b, " update %s", e.SetName)
				default:
					fmt.Fprintf(&b, " %T%+v", e, e)
				}
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// makeStrangers puts a table into the packet filter of this host, and takes it out
// with the test.
func makeStrangers(t testing.TB) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Name: "stranger", Family: nftables.TableFamilyINet})
	set := &nftables.Set{Table: table, Name: "friends", KeyType: nftables.TypeIPAddr}
	if err := c.AddSet(set, []nftables.SetElement{{Key: []byte{203, 0, 113, 77}}}); err != nil {
		t.Fatal(err)
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	})
}

// checkLastRule fails the test unless the last rule for packets to the namespace's
// sockets, and for those through it, drops whatever is left.
func checkLastRule(t testing.TB, rules string) {
	t.Helper()
	for _, name := range []string{"input", "forward"} {
		_, rest, ok := strings.Cut(rules, "chain "+name+" ")
		if !ok {
			t.Errorf("there is no chain %s:\n%s", name, rules)
			continue
		}
		body, _, _ := strings.Cut(rest, "\nchain ")
		lines := strings.Split(strings.TrimSpace(body), "\n")
		if last := lines[len(lines)-1]; !strings.HasPrefix(strings.TrimSpace(last), "rule: *expr.Verdict&{Kind:0 ") {
			t.Errorf("the last rule of %s is %q", name, last)
		}
	}
}
