// Package telemetry is what an operator sees of emberd: counters, the state of
// things, and what happened last.
//
// The one idea: what happens is an event, and what is, is asked for. Whoever makes
// something happen publishes it once; counters and histograms are counted from
// that, and the same event is kept for those who follow along. Gauges are read
// from their owners at the time of a scrape.
//
// The invariant: nobody who publishes waits, whoever reads. What is kept is
// bounded, and so is what a scrape costs; no label is a tenant's, a sandbox's or
// anything else that a client can make up.
//
// The package registers with the registry it is given and knows no HTTP. It does
// not log: what an operator has to act on at once is for the log.
package telemetry

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/emberd/emberd/internal/sandbox"
)

// Telemetry is counters, gauges and events. Its methods may be called by any
// number of goroutines.
type Telemetry struct {
	registry *prometheus.Registry
	counters counters
	events   *events
}

// New returns the telemetry of a daemon of that version, which registers with
// registry. Now is the clock of the events; nil means [time.Now].
func New(registry *prometheus.Registry, version string, now func() time.Time) *Telemetry {
	t := &Telemetry{registry: registry, counters: newCounters(), events: newEvents(now)}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "emberd_build_info", Help: "The version of emberd, as a label; the value is 1.",
		ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version()},
	})
	build.Set(1)
	registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(t.counters.all()...)
	return t
}

// Publish counts an event and keeps it for those who follow. It waits for nobody.
func (t *Telemetry) Publish(event sandbox.Event) {
	t.counters.count(event)
	// A client that asks again and again must not push out what happened, nor a guest
	// that does.
	if event.Kind != sandbox.EventRejected && !event.CountOnly {
		t.events.add(event)
	}
}

// Answered counts a request by the pattern of its route, "" for none, and the
// status of its answer.
func (t *Telemetry) Answered(route string, status int) { t.counters.answered(route, status) }

// Since returns what happened after the event called id, and all that is kept for
// "".
func (t *Telemetry) Since(id string) Page { return t.events.since(id) }

// Close tells those who follow the events that there will be no more.
func (t *Telemetry) Close() { t.events.close() }
