package bench

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Report is what one run measured. As JSON it is for machines; its fields are
// added to and never renamed.
type Report struct {
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Host    Host      `json:"host"`

	// PMS is the yardstick P in milliseconds: the median time of one plain start
	// of the interpreter by fork and exec inside a sandbox, of all those in this run.
	PMS float64 `json:"p_ms"`
	// PMSOf is the same of those right before and after a class was measured.
	PMSOf map[string]float64 `json:"p_ms_of"`
	// Ratios are medians in the P of their class, and those of node in its own plain
	// start.
	Ratios map[string]float64 `json:"ratios"`
	// Classes are the measured times in milliseconds, by class.
	Classes map[string]Stats `json:"classes"`
	// PSSMiB is the memory of one sandbox that it shares with no other, "idle"
	// and "loaded" by an exec, and that of what all sandboxes of a template share,
	// "template", counted once.
	PSSMiB map[string]float64 `json:"pss_mib"`
	// DaemonRSSMiB is the resident memory of emberd "before" and "after" the lives
	// of [Config.Cycles].
	DaemonRSSMiB map[string]float64 `json:"daemon_rss_mib,omitempty"`
	// Rates are sandboxes per second.
	Rates map[string]float64 `json:"rates_per_s"`
	// Sweep is the whole cycle, several at a time.
	Sweep []SweepPoint `json:"sweep,omitempty"`
	// Left is what the run left behind: nothing, or the run is no good.
	Left []string `json:"left"`
	// NotMeasured says what is missing in the report, and why.
	NotMeasured map[string]string `json:"not_measured,omitempty"`
}

// Host is what the numbers were measured on.
type Host struct {
	CPU         string `json:"cpu"`
	CPUs        int    `json:"cpus"`
	MemoryMiB   int    `json:"memory_mib"`
	Kernel      string `json:"kernel"`
	KVM         string `json:"kvm"`
	Emberd      string `json:"emberd"`
	Firecracker string `json:"firecracker"`
	Pack        string `json:"pack"`
	Load        string `json:"load"`
}

// SweepPoint is the whole cycle with that many clients at a time.
type SweepPoint struct {
	Clients   int     `json:"clients"`
	Cycle     Stats   `json:"cycle"`
	PerSecond float64 `json:"per_s"`
	// Pooled is how many of the sandboxes came from the pool.
	Pooled int `json:"pooled"`
}

// Stats are percentiles of times, in milliseconds.
type Stats struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// statsOf sorts took.
func statsOf(took []time.Duration) Stats {
	if len(took) == 0 {
		return Stats{}
	}
	slices.Sort(took)
	// The nearest rank: a time that was measured, and none between two.
	at := func(p float64) float64 { return ms(took[int(math.Ceil(p*float64(len(took))))-1]) }
	return Stats{N: len(took), P50: at(.50), P95: at(.95), P99: at(.99), Max: ms(took[len(took)-1])}
}

func ms(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

// round keeps three digits behind the point, so that a report can be read.
func round(x float64) float64 { return math.Round(x*1000) / 1000 }

// order is how classes are shown, and what a ratio of each is called. What a
// class is stands in the text of `emberctl bench --help`.
var order = []struct{ class, ratio string }{
	{"create_pool", "create_pool"}, {"create_restore", "create_restore"}, {"create_cold", "create_cold"},
	{"first_exec_pool", "first_exec"}, {"first_exec_restore", "first_exec_restore"}, {"exec", "exec"}, {"exec_in_a_row", "exec_in_a_row"},
	{"delete", "delete"}, {"delete_gone", "delete_gone"}, {"cycle", "cycle"},
	{"floor_restore", "floor_restore"}, {"http", "http"},
}

// addRatios states every class in its P.
func (r *Report) addRatios() {
	for _, o := range order {
		if s, ok := r.Classes[o.class]; ok && r.PMSOf[o.class] > 0 {
			r.Ratios[o.ratio] = round(s.P50 / r.PMSOf[o.class])
		}
	}
}

// Table is the report for people: rows of columns, the first of them a heading.
func (r *Report) Table() [][]string {
	rows := [][]string{{"CLASS", "N", "P50 MS", "P95 MS", "P99 MS", "RATIO"}}
	ratio := func(name string) string {
		if x, ok := r.Ratios[name]; ok {
			return fmt.Sprintf("%.3f P", x)
		}
		return ""
	}
	row := func(name string, s Stats, ratio string) {
		rows = append(rows, []string{name, fmt.Sprint(s.N), number(s.P50), number(s.P95), number(s.P99), ratio})
	}
	shown := map[string]bool{}
	for _, o := range order {
		if s, ok := r.Classes[o.class]; ok {
			row(o.class, s, ratio(o.ratio))
			shown[o.class] = true
		}
	}
	for _, class := range slices.Sorted(maps.Keys(r.Classes)) {
		if !shown[class] {
			row(class, r.Classes[class], ratio(class))
		}
	}
	for _, p := range r.Sweep {
		row(fmt.Sprintf("cycle, %d at a time", p.Clients), p.Cycle, fmt.Sprintf("%.2f/s, %d pooled", p.PerSecond, p.Pooled))
	}
	return rows
}

// Facts is what no class is: memory, rates, what is missing, what is left.
func (r *Report) Facts() [][]string {
	rows := [][]string{}
	for _, name := range []string{"idle", "loaded", "template"} {
		if x, ok := r.PSSMiB[name]; ok {
			rows = append(rows, []string{"memory, " + name, fmt.Sprintf("%.1f MiB", x)})
		}
	}
	for _, when := range []string{"before", "after"} {
		if x, ok := r.DaemonRSSMiB[when]; ok {
			rows = append(rows, []string{"emberd's memory, " + when, fmt.Sprintf("%.1f MiB", x)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Rates)) {
		rows = append(rows, []string{name, fmt.Sprintf("%.2f/s", r.Rates[name])})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Ratios)) {
		if !slices.ContainsFunc(order, func(o struct{ class, ratio string }) bool { return o.ratio == name }) {
			rows = append(rows, []string{name, fmt.Sprintf("%.2f", r.Ratios[name])})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.NotMeasured)) {
		rows = append(rows, []string{"not measured: " + name, r.NotMeasured[name]})
	}
	left := "nothing"
	if len(r.Left) > 0 {
		left = strings.Join(r.Left, "; ")
	}
	return append(rows, []string{"left behind", left})
}

func number(x float64) string {
	if x < 10 {
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.1f", x)
}

// Change is one ratio of two reports.
type Change struct {
	Name string  `json:"name"`
	Old  float64 `json:"old"`
	New  float64 `json:"new"`
	// Percent is how much more the new one is.
	Percent float64 `json:"percent"`
}

// Compare returns what differs between two reports, the ratios that grew most
// first. Times of different runs cannot be compared; ratios to P can.
func Compare(old, now *Report) []Change {
	var changes []Change
	add := func(prefix string, old, now map[string]float64) {
		for name, was := range old {
			if is, ok := now[name]; ok && was > 0 {
				changes = append(changes, Change{prefix + name, was, is, round((is/was - 1) * 100)})
			}
		}
	}
	add("", old.Ratios, now.Ratios)
	add("pss_mib.", old.PSSMiB, now.PSSMiB)
	slices.SortFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(b.Percent, a.Percent), cmp.Compare(a.Name, b.Name))
	})
	return changes
}
