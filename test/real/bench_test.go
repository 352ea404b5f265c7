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

// BenchmarkLife measures the parts of a sandbox's life, twenty times each, and
// states them in P, the time that a cold interpreter takes to start in the same
// sandbox. Milliseconds differ from host to host, and these ratios do not.
func BenchmarkLife(b *testing.B) {
	const n = 20
	h := newHost(b)
	id := h.create(b, "python")
	idle := pss(b, h.vmm(b, id))
	res, err := h.Exec(b.Context(), id, client.Program{Code: measureP})
	if err != nil || res.ExitCode != 0 {
		b.Fatalf("%q, %v", res.Stderr, err)
	}
	var ps []time.Duration
	for line := range strings.FieldsSeq(string(res.Stdout)) {
		us, err := strconv.Atoi(line)
		if err != nil {
			b.Fatal(err)
		}
		ps = append(ps, time.Duration(us)*time.Microsecond)
	}
	took := map[string][]time.Duration{}
	measure := func(what string, f func() error) {
		began := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		took[what] = append(took[what], time.Since(began))
	}
	for range n {
		measure("exec", func() error {
			_, err := h.Exec(b.Context(), id, client.Program{Code: "print(6*7)"})
			return err
		})
		var other string
		measure("create", func() (err error) { other, err = h.Create(b.Context(), "python"); return err })
		measure("delete", func() error { return h.Delete(b.Context(), other) })
	}
	p := median(ps)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(p.Milliseconds()), "P-ms")
	for what, took := range took {
		m := median(took)
		b.ReportMetric(float64(m.Milliseconds()), what+"-ms")
		b.ReportMetric(float64(m)/float64(p), what+"-P")
	}
	b.ReportMetric(float64(idle)/1024, "idle-PSS-MiB")
	b.ReportMetric(float64(pss(b, h.vmm(b, id)))/1024, "used-PSS-MiB")
}

// median sorts took.
func median(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}
