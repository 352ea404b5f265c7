package telemetry

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/emberd/emberd/internal/sandbox"
)

var descName = regexp.MustCompile(`fqName: "([^"]+)"`)

// life is an event of each kind.
var life = []sandbox.Event{
	{Kind: sandbox.EventCreated},
	{Kind: sandbox.EventReady, BootPath: sandbox.Pooled, Took: time.Millisecond},
	{Kind: sandbox.EventFailed, Reason: "boot_failed"},
	{Kind: sandbox.EventExec, Reason: "ok", Took: 2 * time.Millisecond, Ran: time.Millisecond, Warm: true},
	{Kind: sandbox.EventExec, Reason: "lost"},
	{Kind: sandbox.EventOOM, Reason: "guest"},
	{Kind: sandbox.EventEgressDenied, Denied: &sandbox.EgressDenial{Reason: sandbox.DeniedNoRule, Protocol: sandbox.TCP, Count: 3}},
	{Kind: sandbox.EventEgressDenied, Denied: &sandbox.EgressDenial{Reason: sandbox.DeniedNoRule, Protocol: sandbox.TCP, Count: 4}, CountOnly: true},
	{Kind: sandbox.EventEgressDenied, Denied: &sandbox.EgressDenial{Reason: "made up", Protocol: "255", Count: 1}},
	{Kind: sandbox.EventAdopted},
	{Kind: sandbox.EventExpired, Reason: "idle"},
	{Kind: sandbox.EventLost, Reason: "vmm_ended"},
	{Kind: sandbox.EventDeleted, Reason: "request"},
	{Kind: sandbox.EventRejected, Reason: "no_capacity"},
}

func watched(t *testing.T) (*prometheus.Registry, *Telemetry) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	tel := New(registry, "test", nil)
	tel.Watch(Sources{
		Sandboxes: func() []sandbox.Load {
			return []sandbox.Load{{Sandbox: sandbox.Sandbox{State: sandbox.Running}, Execs: 2}, {Sandbox: sandbox.Sandbox{State: sandbox.Deleting}}}
		},
		Promised: func() (promised, capacity Room) { return Room{2, 640, 2}, Room{10, 4096, 64} },
		Pool: func() []Stock {
			return []Stock{{Pack: "python", Ready: 1, Busy: 2, Target: 3, Max: 4, Hits: 5, Misses: 6, Refills: 7, Failures: 8}}
		},
		Templates: func() Templates {
			return Templates{States: map[string]int{"ready": 2}, Bytes: 1 << 20, Builds: 3, Failures: 4, Refused: 5, FailedRestores: 6}
		},
		VMMs: NewVMMs(host(map[string][2]int{"vm_a": {100, 10}, "vm_b": {200, 20}}), "/emberd-1"),
	})
	for _, event := range life {
		tel.Publish(event)
	}
	tel.Answered("GET /info", 200)
	return registry, tel
}

// A metric that is declared and that nothing emits is one that somebody waits for
// in vain; one that nobody explains is of no use.
func TestEveryMetricIsEmitted(t *testing.T) {
	registry, _ := watched(t)
	declared := make(chan *prometheus.Desc)
	go func() {
		defer close(declared)
		registry.Describe(declared)
	}()
	manual, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for d := range declared {
		name := descName.FindStringSubmatch(d.String())[1]
		if !strings.HasPrefix(name, "emberd_") {
			continue
		}
		missing[name] = true
		if !regexp.MustCompile("`" + name + "[`{]").Match(manual) {
			t.Errorf("%s is not explained", name)
		}
	}
	if len(missing) < 30 {
		t.Errorf("only %d metrics are declared", len(missing))
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "emberd_") && !missing[family.GetName()] {
			t.Errorf("%s is not declared", family.GetName())
		}
		delete(missing, family.GetName())
	}
	if len(missing) > 0 {
		t.Errorf("never emitted: %q", slices.Sorted(maps.Keys(missing)))
	}
}

func TestMetricsSayWhatIs(t *testing.T) {
	_, tel := watched(t)
	_, body, err := tel.Metrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`emberd_creates_total{boot_path="pool",result="ok"} 1`,
		`emberd_creates_total{boot_path="none",result="boot_failed"} 1`,
		`emberd_create_seconds_count{boot_path="pool"} 1`,
		`emberd_execs_total{result="ok"} 1`, `emberd_execs_total{result="lost"} 1`,
		`emberd_exec_seconds_sum{start="warm"} 0.002`, `emberd_exec_overhead_seconds_sum{start="warm"} 0.001`,
		`emberd_ooms_total{where="guest"} 1`, `emberd_adoptions_total 1`, `emberd_rejections_total{code="no_capacity"} 1`,
		`emberd_egress_denied_total{protocol="tcp",reason="no_rule"} 7`, `emberd_egress_denied_total{protocol="other",reason="other"} 1`,
		`emberd_sandbox_ends_total{kind="deleted",reason="request"} 1`,
		`emberd_sandbox_ends_total{kind="expired",reason="idle"} 1`,
		`emberd_sandbox_ends_total{kind="lost",reason="vmm_ended"} 1`,
		`emberd_sandboxes{state="creating"} 0`, `emberd_sandboxes{state="running"} 1`, `emberd_sandboxes{state="deleting"} 1`,
		`emberd_execs_running 2`, `emberd_sandboxes_promised 2`, `emberd_sandboxes_capacity 10`,
		`emberd_memory_promised_bytes 6.7108864e+08`, `emberd_memory_capacity_bytes 4.294967296e+09`,
		`emberd_vcpus_promised 2`, `emberd_vcpus_capacity 64`,
		`emberd_pool_ready{pack="python"} 1`, `emberd_pool_making{pack="python"} 2`, `emberd_pool_wanted{pack="python"} 3`, `emberd_pool_max{pack="python"} 4`,
		`emberd_pool_hits_total{pack="python"} 5`, `emberd_pool_misses_total{pack="python"} 6`,
		`emberd_pool_refills_total{pack="python"} 7`, `emberd_pool_failures_total{pack="python"} 8`,
		`emberd_templates{state="ready"} 2`, `emberd_template_bytes 1.048576e+06`, `emberd_template_builds_total{result="ok"} 3`,
		`emberd_template_builds_total{result="failed"} 4`, `emberd_template_builds_total{result="refused"} 5`, `emberd_restores_failed_total 6`,
		`emberd_vmms 2`, `emberd_vmm_memory_bytes{kind="own"} 307200`, `emberd_vmm_memory_bytes{kind="shared"} 30720`,
		`emberd_http_requests_total{route="GET /info",status="200"} 1`,
		`go_goroutines `, `process_resident_memory_bytes `,
	} {
		if !strings.Contains(string(body), "\n"+want) {
			t.Errorf("%s is missing", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", body)
	}
}
