// Package oracle says what a test did to the host it ran on.
//
// The one idea is that every test is asked the same questions, whatever it is
// about. A [Snapshot] of the host from before is compared with one from after,
// canaries lie where nobody has any business ([Canary], [Config].Guarded), and a
// [Probe] asks a neighbour or the daemon how it is. Each answer that is wrong is
// a [Finding] with a [Verdict]; a test that gets any has failed.
//
// The oracle changes nothing that it looks at. It is for tests, and it knows
// emberd only by the processes, ids and directories that it is told.
package oracle

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Verdict is what kind of harm was done.
type Verdict string

// The verdicts, worst first.
const (
	Escape    Verdict = "ESCAPE"    // a VMM's user acted outside of a jail
	Read      Verdict = "READ"      // a canary's secret was seen
	Write     Verdict = "WRITE"     // something changed that nobody may change
	Crash     Verdict = "CRASH"     // the daemon or the kernel broke
	Leak      Verdict = "LEAK"      // something was left behind
	Neighbour Verdict = "NEIGHBOUR" // somebody else was disturbed
	None      Verdict = "none"
)

// Finding is one thing that is not as it has to be.
type Finding struct {
	Verdict Verdict
	What    string
}

func (f Finding) String() string { return string(f.Verdict) + " " + f.What }

// Judge is the worst verdict among findings.
func Judge(findings []Finding) Verdict {
	for _, v := range []Verdict{Escape, Read, Write, Crash, Leak, Neighbour} {
		if slices.ContainsFunc(findings, func(f Finding) bool { return f.Verdict == v }) {
			return v
		}
	}
	return None
}

// DefaultGrowth is by how many bytes a daemon's memory may grow over a test.
const DefaultGrowth = 32 << 20

// Config says what to look at beside the host as a whole: its processes, network
// namespaces, links, routes, packet filter, mounts, loop devices, cgroups, Unix
// sockets and kernel log.
type Config struct {
	// Process is the daemon, whose descriptors and memory are counted, and whose
	// goroutines too if it is this process. Zero leaves that out.
	Process int
	// Growth is by how many bytes its memory may grow; zero means
	// [DefaultGrowth].
	Growth int64
	// Dirs are where things are made and removed again. Files that come to be
	// and bytes that are added there are leaks. One that does not exist is empty.
	Dirs []string
	// Guarded are trees that nobody may change.
	Guarded []string
	// FirstUser is the first of the ids of jailed VMMs; there are Users of them.
	FirstUser, Users int
}

// Snapshot is the state of the host at one time.
type Snapshot struct {
	cfg Config
	// items is what is there once: each is a line that says what it is.
	items map[string]bool
	// counts is what is there many times, such as descriptors of one class.
	counts map[string]int64
	// guarded describes each file of the guarded trees.
	guarded map[string]string
	// escapes are processes of VMM users that are not confined.
	escapes map[string]bool
	kernel  map[string]bool
	alive   bool
	rss     int64
}

// Take looks at the host.
func Take(cfg Config) (*Snapshot, error) {
	s := &Snapshot{
		cfg: cfg, items: map[string]bool{}, counts: map[string]int64{},
		guarded: map[string]string{}, escapes: map[string]bool{}, kernel: map[string]bool{},
	}
	for _, look := range []struct {
		what string
		at   func() error
	}{
		{"processes", s.takeProcesses},
		{"mounts and cgroups", s.takeMounts},
		{"links", s.takeLinks},
		{"routes", s.takeRoutes},
		{"nftables", s.takeRuleset},
		{"loop devices", s.takeLoops},
		{"Unix sockets", s.takeSockets},
		{"kernel log", s.takeKernelLog},
		{"files", s.takeDirs},
		{"guarded files", s.takeGuarded},
		{"daemon", s.takeDaemon},
	} {
		if err := look.at(); err != nil {
			return nil, fmt.Errorf("look at %s: %w", look.what, err)
		}
	}
	return s, nil
}

// Since returns what is wrong with s, given that the host was as before says.
func (s *Snapshot) Since(before *Snapshot) []Finding {
	var found []Finding
	report := func(v Verdict, format string, args ...any) {
		found = append(found, Finding{v, fmt.Sprintf(format, args...)})
	}
	if before.alive && !s.alive {
		report(Crash, "the daemon (process %d) is gone", s.cfg.Process)
	}
	for _, line := range added(before.kernel, s.kernel) {
		report(Crash, "kernel: %s", line)
	}
	for _, what := range added(before.escapes, s.escapes) {
		report(Escape, "%s", what)
	}
	for _, path := range slices.Sorted(maps.Keys(union(before.guarded, s.guarded))) {
		if was, is := before.guarded[path], s.guarded[path]; was != is {
			report(Write, "%s was %q, is %q", path, was, is)
		}
	}
	for _, what := range added(before.items, s.items) {
		report(Leak, "%s", what)
	}
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		if was, is := before.counts[what], s.counts[what]; is > was {
			report(Leak, "%s: %d, were %d", what, is, was)
		}
	}
	growth := s.cfg.Growth
	if growth == 0 {
		growth = DefaultGrowth
	}
	if s.alive && before.alive && s.rss-before.rss > growth {
		report(Leak, "the daemon's memory grew by %d KiB, %d are allowed", (s.rss-before.rss)>>10, growth>>10)
	}
	return found
}

// Settle takes snapshots until there is nothing wrong with the host or patience
// is over, and returns what is wrong with the last. What ends by itself, as a
// goroutine does that was told to, needs a moment.
func Settle(before *Snapshot, patience time.Duration) ([]Finding, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for {
		now, err := Take(before.cfg)
		if err != nil {
			return nil, err
		}
		found := now.Since(before)
		if len(found) == 0 || time.Now().After(deadline) {
			return found, nil
		}
		<-tick.C
	}
}

// patience is how long [Check] waits for the host to settle. A sandbox that was
// deleted is cleared up behind the answer.
const patience = 5 * time.Second

// Check fails the test if anything is wrong with the host, given that it was as
// before says.
func Check(tb testing.TB, before *Snapshot) {
	tb.Helper()
	found, err := Settle(before, patience)
	if err != nil {
		tb.Fatal(err)
	}
	Report(tb, found)
}

// Report fails the test if there are findings.
func Report(tb testing.TB, found []Finding) {
	tb.Helper()
	if v := Judge(found); v != None {
		lines := make([]string, len(found))
		for i, f := range found {
			lines[i] = f.String()
		}
		tb.Errorf("verdict %s:\n%s", v, strings.Join(lines, "\n"))
	}
}

// added are the keys of now that before lacks, sorted.
func added(before, now map[string]bool) []string {
	var more []string
	for k := range now {
		if !before[k] {
			more = append(more, k)
		}
	}
	slices.Sort(more)
	return more
}

func union(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}
