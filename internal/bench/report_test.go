package bench

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStats(t *testing.T) {
	var took []time.Duration
	for i := 100; i > 0; i-- {
		took = append(took, time.Duration(i)*time.Millisecond)
	}
	if got, want := statsOf(took), (Stats{N: 100, P50: 50, P95: 95, P99: 99, Max: 100}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := statsOf([]time.Duration{1500 * time.Microsecond}), (Stats{N: 1, P50: 1.5, P95: 1.5, P99: 1.5, Max: 1.5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := statsOf(nil); got != (Stats{}) {
		t.Errorf("got %+v of nothing", got)
	}
}

func TestRatios(t *testing.T) {
	r := Report{PMS: 300, PMSOf: map[string]float64{"create_pool": 200, "first_exec_pool": 200, "floor_restore": 100}, Ratios: map[string]float64{}, Classes: map[string]Stats{
		"create_pool": {P50: 2}, "first_exec_pool": {P50: 50}, "floor_restore": {P50: 150},
	}}
	r.addRatios()
	for name, want := range map[string]float64{"create_pool": 0.01, "first_exec": 0.25, "floor_restore": 1.5} {
		if got := r.Ratios[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if len(r.Ratios) != 3 {
		t.Errorf("ratios of what was not measured: %v", r.Ratios)
	}
	if rows := r.Table(); len(rows) != 4 || rows[1][0] != "create_pool" || rows[1][5] != "0.010 P" {
		t.Errorf("table: %v", rows)
	}
}

func TestCompare(t *testing.T) {
	old := &Report{Ratios: map[string]float64{"exec": 0.1, "delete": 0.2, "gone": 1}, PSSMiB: map[string]float64{"idle": 5}}
	now := &Report{Ratios: map[string]float64{"exec": 0.15, "delete": 0.1, "new": 1}, PSSMiB: map[string]float64{"idle": 5}}
	want := []Change{{"exec", 0.1, 0.15, 50}, {"pss_mib.idle", 5, 5, 0}, {"delete", 0.2, 0.1, -50}}
	if got := Compare(old, now); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSmaps(t *testing.T) {
	const smaps = `5581c0a00000-5581c0a01000 r-xp 00000000 fe:01 42  /firecracker
Rss:                   8 kB
Pss:                   4 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0010000000 rw-p 00000000 fe:01 43  /mem
Rss:                4096 kB
Pss:                2048 kB
Pss_Dirty:          1024 kB
Anonymous:          1024 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0  [stack]
Pss:                  12 kB
Anonymous:            12 kB
`
	got, err := parseSmaps(strings.NewReader(smaps))
	if want := (memory{own: 4 + 1024 + 12, shared: 1024}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
