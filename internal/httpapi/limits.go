package httpapi

import (
	"math"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// limits returns what a request asks for in emberd's words. Bounds are for the
// engine to check, apart from times that a [time.Duration] cannot hold.
func limits(l rest.Limits) (sandbox.Limits, error) {
	for _, s := range []struct {
		name    string
		seconds int64
	}{
		{"timeout_s", l.TimeoutS}, {"idle_timeout_s", l.IdleTimeoutS}, {"exec_timeout_s", l.ExecTimeoutS},
	} {
		const most = math.MaxInt64 / int64(time.Second)
		if s.seconds > most || s.seconds < -most {
			return sandbox.Limits{}, sandbox.Invalid("%s is %d; no time is that long", s.name, s.seconds)
		}
	}
	return sandbox.Limits{
		Size:        sandbox.Size{VCPUs: l.VCPUs, MemoryMiB: l.MemoryMiB},
		DiskMiB:     l.DiskMiB,
		PIDs:        l.PIDs,
		Lifetime:    time.Duration(l.TimeoutS) * time.Second,
		IdleTimeout: time.Duration(l.IdleTimeoutS) * time.Second,
		ExecTimeout: time.Duration(l.ExecTimeoutS) * time.Second,
		Execs:       l.Execs,
		OutputBytes: l.OutputBytes,
	}, nil
}

// describeLimits returns l in the API's words.
func describeLimits(l sandbox.Limits) rest.Limits {
	return rest.Limits{
		VCPUs:        l.VCPUs,
		MemoryMiB:    l.MemoryMiB,
		DiskMiB:      l.DiskMiB,
		PIDs:         l.PIDs,
		TimeoutS:     int64(l.Lifetime / time.Second),
		IdleTimeoutS: int64(l.IdleTimeout / time.Second),
		ExecTimeoutS: int64(l.ExecTimeout / time.Second),
		Execs:        l.Execs,
		OutputBytes:  l.OutputBytes,
	}
}
