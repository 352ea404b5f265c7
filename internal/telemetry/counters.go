package telemetry

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/emberd/emberd/internal/sandbox"
)

// none is the label of what has no value, and other of what has one too many.
const (
	none  = "none"
	other = "other"
)

// counters is what is counted as it happens.
type counters struct {
	creates       *prometheus.CounterVec
	createSeconds *prometheus.HistogramVec
	rejections    *prometheus.CounterVec
	execs         *prometheus.CounterVec
	execSeconds   *prometheus.HistogramVec
	execOverhead  *prometheus.HistogramVec
	ends          *prometheus.CounterVec
	adopted       prometheus.Counter
	ooms          *prometheus.CounterVec
	denials       *prometheus.CounterVec
	requests      *prometheus.CounterVec
}

func newCounters() counters {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return counters{
		creates: counter("emberd_creates_total",
			"Sandboxes that were asked for and admitted, by how the microVM came to be and how the request ended: ok, or the code of its error.", "boot_path", "result"),
		createSeconds: latency("emberd_create_seconds",
			"From the request for a sandbox to its readiness, by how the microVM came to be.", "boot_path"),
		rejections: counter("emberd_rejections_total",
			"Requests for a sandbox that there was no room for, by the code of the error.", "code"),
		execs: counter("emberd_execs_total",
			"Programs that ended, by how: ok, failed (another exit status than 0), timed_out, not_started, lost.", "result"),
		execSeconds: latency("emberd_exec_seconds",
			"From the request to run a program to its result, by the start of its interpreter.", "start"),
		execOverhead: latency("emberd_exec_overhead_seconds",
			"The same without the time that the program itself ran.", "start"),
		ends: counter("emberd_sandbox_ends_total",
			"Sandboxes of which nothing is left, by the kind of the end (deleted, expired, lost) and the reason.", "kind", "reason"),
		adopted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "emberd_adoptions_total", Help: "Sandboxes of an earlier daemon that this one goes on with.",
		}),
		ooms: counter("emberd_ooms_total",
			"Programs that had no memory left in their guest, and VMMs that the host's OOM killer ended.", "where"),
		denials: counter("emberd_egress_denied_total",
			"What sandboxes wanted to reach and may not, by the reason and the protocol.", "reason", "protocol"),
		requests: counter("emberd_http_requests_total",
			"Answers of the API, by route and status.", "route", "status"),
	}
}

// latency is a native histogram. It has a few fixed buckets too, for what reads the
// text format, which cannot carry the others.
func latency(name, help, label string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help,
		Buckets:                         []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  160,
		NativeHistogramMinResetDuration: time.Hour,
	}, []string{label})
}

func (c *counters) all() []prometheus.Collector {
	return []prometheus.Collector{
		c.creates, c.createSeconds, c.rejections, c.execs, c.execSeconds, c.execOverhead, c.ends, c.adopted, c.ooms, c.denials, c.requests,
	}
}

// count counts one event.
func (c *counters) count(event sandbox.Event) {
	path := cmp.Or(string(event.BootPath), none)
	switch event.Kind {
	case sandbox.EventReady:
		c.creates.WithLabelValues(path, "ok").Inc()
		c.createSeconds.WithLabelValues(path).Observe(event.Took.Seconds())
	case sandbox.EventFailed:
		c.creates.WithLabelValues(path, event.Reason).Inc()
	case sandbox.EventRejected:
		c.rejections.WithLabelValues(event.Reason).Inc()
	case sandbox.EventExec:
		c.execs.WithLabelValues(event.Reason).Inc()
		if event.Ran > 0 {
			start := startName(event.Warm)
			c.execSeconds.WithLabelValues(start).Observe(event.Took.Seconds())
			c.execOverhead.WithLabelValues(start).Observe(max(0, event.Took-event.Ran).Seconds())
		}
	case sandbox.EventOOM:
		c.ooms.WithLabelValues(event.Reason).Inc()
	case sandbox.EventEgressDenied:
		c.denied(event.Denied)
	case sandbox.EventAdopted:
		c.adopted.Inc()
	case sandbox.EventDeleted, sandbox.EventExpired, sandbox.EventLost:
		c.ends.WithLabelValues(string(event.Kind), event.Reason).Inc()
	case sandbox.EventCreated: // how it ends is counted
	}
}

// The labels of denials. What is none of them is a number of the guest's choice.
var (
	deniedReasons = []sandbox.EgressReason{
		sandbox.DeniedNoRule, sandbox.DeniedRange, sandbox.DeniedName, sandbox.DeniedUnnamed, sandbox.DeniedUnresolved, sandbox.DeniedLimit,
	}
	deniedProtocols = []sandbox.Protocol{sandbox.TCP, sandbox.UDP, sandbox.DNS, "icmp"}
)

func (c *counters) denied(d *sandbox.EgressDenial) {
	reason, protocol := string(d.Reason), string(d.Protocol)
	if !slices.Contains(deniedReasons, d.Reason) {
		reason = other
	}
	if !slices.Contains(deniedProtocols, d.Protocol) {
		protocol = other
	}
	c.denials.WithLabelValues(reason, protocol).Add(float64(max(0, d.Count)))
}

func startName(warm bool) string {
	if warm {
		return "warm"
	}
	return "cold"
}

func (c *counters) answered(route string, status int) {
	c.requests.WithLabelValues(cmp.Or(route, none), strconv.Itoa(status)).Inc()
}
