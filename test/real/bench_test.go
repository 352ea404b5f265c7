package real

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
)

// measureP prints how long a cold interpreter takes, started by fork and exec
// inside the sandbox, in microseconds, twenty times.
const measureP = `
import subprocess, time
for _ in range(20):
    began = time.perf_counter()
    subprocess.run(["python3", "-c", "print(6*7)"], stdout=subprocess.DEVNULL)
    print(int((time.perf_counter() - began) * 1e6))
`

// TestMeasure prints what the parts of a sandbox's life take, and their ratio
// to P, the start of a cold interpreter in the same sandbox. It asserts nothing:
// machines differ.
func TestMeasure(t *testing.T) {
	const n = 20
	h := newHost(t)
	var creates, execs, deletes []time.Duration
	for range n {
		began := time.Now()
		id := h.create(t, "python")
		creates = append(creates, time.Since(began))
		began = time.Now()
		if err := h.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		deletes = append(deletes, time.Since(began))
	}
	id := h.create(t, "python")
	idle := pss(t, h.vmm(t, id))
	res, err := h.Exec(t.Context(), id, client.Program{Code: measureP})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%q, %v", res.Stderr, err)
	}
	var ps []time.Duration
	for line := range strings.FieldsSeq(string(res.Stdout)) {
		us, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, time.Duration(us)*time.Microsecond)
	}
	for range n {
		began := time.Now()
		if _, err := h.Exec(t.Context(), id, client.Program{Code: "print(6*7)"}); err != nil {
			t.Fatal(err)
		}
		execs = append(execs, time.Since(began))
	}
	p := median(ps)
	t.Logf("P       p50 %8v", p.Round(time.Millisecond))
	for name, took := range map[string][]time.Duration{"create": creates, "exec": execs, "delete": deletes} {
		m := median(took)
		t.Logf("%-7s p50 %8v  %5.2f P  p95 %v", name, m.Round(time.Millisecond), float64(m)/float64(p),
			took[len(took)*95/100].Round(time.Millisecond))
	}
	t.Logf("PSS of the VMM: %d KiB idle, %d KiB after %d execs", idle, pss(t, h.vmm(t, id)), n+1)
}

// median sorts took.
func median(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}
