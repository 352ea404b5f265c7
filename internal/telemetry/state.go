package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/emberd/emberd/internal/sandbox"
)

// Sources is whom to ask for what is. Each is asked at every scrape, by several
// goroutines if there are several.
type Sources struct {
	// Sandboxes are those of which there is anything.
	Sandboxes func() []sandbox.Load
	// Promised is what they may come to use together, and Capacity the most that
	// may be promised.
	Promised func() (promised, capacity Room)
	Pool     func() []Stock
	// Templates may be nil, where there are none.
	Templates func() Templates
	// VMMs may be nil, where the host is not looked at.
	VMMs *VMMs
}

// Room is for how many sandboxes of which size there is room.
type Room struct{ Sandboxes, MemoryMiB, VCPUs int }

// Stock is what the pool keeps of one pack.
type Stock struct {
	Pack string
	// Ready microVMs wait, Busy ones are being made or cleared, Target and Max are
	// how many there should be, now and at most.
	Ready, Busy, Target, Max        int
	Hits, Misses, Refills, Failures int64
}

// Templates are the snapshots that microVMs are restored from.
type Templates struct {
	// States counts them by their state.
	States map[string]int
	// Bytes is the room that they take on the disk.
	Bytes int64
	// Builds, Failures and Refused count those that were made, could not be made,
	// and were not used because they were not what they had been.
	Builds, Failures, Refused int64
	// Restores that failed were made up for by a boot.
	FailedRestores int64
}

// states are the states that sandboxes are counted by.
var states = []sandbox.State{sandbox.Creating, sandbox.Running, sandbox.Deleting}

// desc describes one gauge or counter that is asked for.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// What is asked for at a scrape.
type stateDescs struct {
	sandboxes, running                   *prometheus.Desc
	sandboxesPromised, sandboxesCapacity *prometheus.Desc
	memoryPromised, memoryCapacity       *prometheus.Desc
	vcpusPromised, vcpusCapacity         *prometheus.Desc

	poolReady, poolBusy, poolTarget, poolMax        *prometheus.Desc
	poolHits, poolMisses, poolRefills, poolFailures *prometheus.Desc

	templates, templateBytes, templateBuilds, failedRestores *prometheus.Desc

	vmms, vmmMemory *prometheus.Desc
}

func newStateDescs() stateDescs {
	return stateDescs{
		sandboxes:         desc("emberd_sandboxes", "Sandboxes of which there is anything, by state.", "state"),
		running:           desc("emberd_execs_running", "Programs that run."),
		sandboxesPromised: desc("emberd_sandboxes_promised", "Sandboxes that count towards the capacity."),
		sandboxesCapacity: desc("emberd_sandboxes_capacity", "How many sandboxes there may be."),
		memoryPromised:    desc("emberd_memory_promised_bytes", "Memory of the host that sandboxes may come to use, VMMs included; the pool's is set aside apart from it."),
		memoryCapacity:    desc("emberd_memory_capacity_bytes", "Memory of the host that may be promised to sandboxes."),
		vcpusPromised:     desc("emberd_vcpus_promised", "Virtual CPUs of sandboxes."),
		vcpusCapacity:     desc("emberd_vcpus_capacity", "Virtual CPUs that sandboxes may have together."),

		poolReady:    desc("emberd_pool_ready", "MicroVMs that wait for a sandbox.", "pack"),
		poolBusy:     desc("emberd_pool_making", "MicroVMs of the pool that are being made or cleared.", "pack"),
		poolTarget:   desc("emberd_pool_wanted", "MicroVMs that should wait now.", "pack"),
		poolMax:      desc("emberd_pool_max", "MicroVMs that the pool may have, whose memory is set aside.", "pack"),
		poolHits:     desc("emberd_pool_hits_total", "Requests that found a microVM waiting.", "pack"),
		poolMisses:   desc("emberd_pool_misses_total", "Requests that found none.", "pack"),
		poolRefills:  desc("emberd_pool_refills_total", "MicroVMs that were made ready.", "pack"),
		poolFailures: desc("emberd_pool_failures_total", "Refills that failed, and microVMs that ended while they waited.", "pack"),

		templates:      desc("emberd_templates", "Templates, by state.", "state"),
		templateBytes:  desc("emberd_template_bytes", "Room that templates take on the disk."),
		templateBuilds: desc("emberd_template_builds_total", "Templates that were made (ok), could not be made (failed), or were refused because they were not what they had been (refused).", "result"),
		failedRestores: desc("emberd_restores_failed_total", "Restores that failed, so that the microVM was booted instead or the create failed."),

		vmms:      desc("emberd_vmms", "VMM processes: of sandboxes, of the pool, and those that wait for a template."),
		vmmMemory: desc("emberd_vmm_memory_bytes", "Memory of the host that VMMs use: their own, and what they share, counted once.", "kind"),
	}
}

// state collects what is asked for.
type state struct {
	from Sources
	stateDescs
}

// Watch has each scrape ask from.
func (t *Telemetry) Watch(from Sources) { t.registry.MustRegister(&state{from, newStateDescs()}) }

// Describe implements [prometheus.Collector].
func (s *state) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		s.sandboxes, s.running, s.sandboxesPromised, s.sandboxesCapacity, s.memoryPromised, s.memoryCapacity, s.vcpusPromised, s.vcpusCapacity,
		s.poolReady, s.poolBusy, s.poolTarget, s.poolMax, s.poolHits, s.poolMisses, s.poolRefills, s.poolFailures,
		s.templates, s.templateBytes, s.templateBuilds, s.failedRestores, s.vmms, s.vmmMemory,
	} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (s *state) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	total := func(d *prometheus.Desc, value int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	s.collectSandboxes(gauge)
	for _, stock := range s.from.Pool() {
		gauge(s.poolReady, float64(stock.Ready), stock.Pack)
		gauge(s.poolBusy, float64(stock.Busy), stock.Pack)
		gauge(s.poolTarget, float64(stock.Target), stock.Pack)
		gauge(s.poolMax, float64(stock.Max), stock.Pack)
		total(s.poolHits, stock.Hits, stock.Pack)
		total(s.poolMisses, stock.Misses, stock.Pack)
		total(s.poolRefills, stock.Refills, stock.Pack)
		total(s.poolFailures, stock.Failures, stock.Pack)
	}
	if s.from.Templates != nil {
		all := s.from.Templates()
		for name, n := range all.States {
			gauge(s.templates, float64(n), name)
		}
		gauge(s.templateBytes, float64(all.Bytes))
		total(s.templateBuilds, all.Builds, "ok")
		total(s.templateBuilds, all.Failures, "failed")
		total(s.templateBuilds, all.Refused, "refused")
		total(s.failedRestores, all.FailedRestores)
	}
	if s.from.VMMs != nil {
		all := s.from.VMMs.All()
		var sum Memory
		for _, vmm := range all {
			sum.Own += vmm.Memory.Own
			sum.Shared += vmm.Memory.Shared
		}
		gauge(s.vmms, float64(len(all)))
		gauge(s.vmmMemory, float64(sum.Own), "own")
		gauge(s.vmmMemory, float64(sum.Shared), "shared")
	}
}

// collectSandboxes collects how many sandboxes there are, and what was promised.
func (s *state) collectSandboxes(gauge func(d *prometheus.Desc, value float64, labels ...string)) {
	count, execs := map[sandbox.State]int{}, 0
	for _, load := range s.from.Sandboxes() {
		count[load.State]++
		execs += load.Execs
	}
	for _, st := range states {
		gauge(s.sandboxes, float64(count[st]), string(st))
	}
	gauge(s.running, float64(execs))
	promised, capacity := s.from.Promised()
	gauge(s.sandboxesPromised, float64(promised.Sandboxes))
	gauge(s.sandboxesCapacity, float64(capacity.Sandboxes))
	gauge(s.memoryPromised, float64(promised.MemoryMiB)*(1<<20))
	gauge(s.memoryCapacity, float64(capacity.MemoryMiB)*(1<<20))
	gauge(s.vcpusPromised, float64(promised.VCPUs))
	gauge(s.vcpusCapacity, float64(capacity.VCPUs))
}
