package telemetry

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/emberd/emberd/internal/sandbox"
)

func TestEventsSince(t *testing.T) {
	e := newEvents(nil)
	if p := e.since(""); len(p.Events) != 0 || p.Missed != 0 || p.Restarted || p.More == nil {
		t.Fatalf("nothing happened, and yet %+v", p)
	}
	before := e.since("")
	for i := range kept + 10 {
		e.add(sandbox.Event{Kind: sandbox.EventReady, Took: time.Duration(i)})
	}
	select {
	case <-before.More:
	default:
		t.Error("a reader is not told that there is more")
	}
	at := func(seq uint64) string { return e.id(seq) }
	tests := map[string]struct {
		after     string
		first     uint64
		count     int
		missed    uint64
		restarted bool
	}{
		"whoever is new missed nothing": {"", 11, kept, 0, false},
		"who was there at first":        {before.Last, 11, kept, 10, false},
		"just too late":                 {at(9), 11, kept, 1, false},
		"just in time":                  {at(10), 11, kept, 0, false},
		"up to date":                    {at(kept + 10), 0, 0, 0, false},
		"from the future":               {at(kept + 99), 0, 0, 0, false},
		"another daemon's":              {"0123-4", 11, kept, 10, true},
		"no id":                         {e.run + "-x", 11, kept, 10, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := e.since(tt.after)
			if len(p.Events) != tt.count || p.Missed != tt.missed || p.Restarted != tt.restarted || p.Last != at(kept+10) {
				t.Fatalf("got %d events, missed %d, restarted %v, last %s", len(p.Events), p.Missed, p.Restarted, p.Last)
			}
			for i, record := range p.Events {
				if want := tt.first + uint64(i); record.Seq != want || record.ID != at(want) || record.Took != time.Duration(want-1) {
					t.Fatalf("event %d: %+v, want number %d", i, record, want)
				}
			}
		})
	}
	e.close()
	e.close()
	if p := e.since(""); p.More != nil || len(p.Events) != kept {
		t.Errorf("closed: %d events, more %v", len(p.Events), p.More)
	}
	e.add(sandbox.Event{}) // a last word, which nobody waits for
}

// Nobody who publishes waits, and everybody who follows sees each event once and
// in order.
func TestManyFollow(t *testing.T) {
	e := newEvents(nil)
	const readers, events = 8, 500
	var all sync.WaitGroup
	for range readers {
		all.Go(func() {
			var seen uint64
			for p := e.since(""); ; p = e.since(p.Last) {
				for _, record := range p.Events {
					if record.Seq != seen+1 {
						t.Errorf("%d follows %d", record.Seq, seen)
					}
					seen = record.Seq
				}
				if p.More == nil {
					break
				}
				<-p.More
			}
			if seen != events {
				t.Errorf("saw %d events", seen)
			}
		})
	}
	for range events {
		e.add(sandbox.Event{})
	}
	e.close()
	all.Wait()
}

func TestRejectionsDoNotPushOutEvents(t *testing.T) {
	tel := New(prometheus.NewRegistry(), "test", nil)
	tel.Publish(sandbox.Event{Kind: sandbox.EventReady})
	for range 2 * kept {
		tel.Publish(sandbox.Event{Kind: sandbox.EventRejected, Reason: "no_capacity"})
	}
	if p := tel.Since(""); len(p.Events) != 1 {
		t.Errorf("%d events are kept", len(p.Events))
	}
}

// host is a host with VMMs: their ids and what their memory is, in KiB.
func host(vmms map[string][2]int) fstest.MapFS {
	h := fstest.MapFS{"sys/fs/cgroup/emberd-1/cgroup.procs": {}}
	pid := 100
	for id, memory := range vmms {
		pid++
		dir := "sys/fs/cgroup/emberd-1/" + id
		h[dir+"/cgroup.procs"] = &fstest.MapFile{Data: fmt.Appendf(nil, "%d\n%d\n", pid, pid+1000)}
		h[dir+"/cpu.stat"] = &fstest.MapFile{Data: []byte("usage_usec 1500000\nuser_usec 1000000\n")}
		h[fmt.Sprintf("proc/%d/smaps_rollup", pid)] = &fstest.MapFile{Data: fmt.Appendf(nil,
			"00400000-7fff0000 ---p 00000000 00:00 0  [rollup]\nRss: 999 kB\nPss: 999 kB\nPss_Dirty: 7 kB\nPss_Anon: %8d kB\nPss_File: %d kB\nPss_Shmem: 0 kB\n", memory[0], memory[1])}
	}
	return h
}

func TestVMMs(t *testing.T) {
	h := host(map[string][2]int{"vm_a": {1000, 50}})
	h["sys/fs/cgroup/emberd-1/vm_gone/cgroup.procs"] = &fstest.MapFile{} // it just ended
	now := time.Unix(1e9, 0)
	v := NewVMMs(h, "/emberd-1")
	v.now = func() time.Time { return now }
	all := v.All()
	want := VMM{ID: "vm_a", PID: 101, CPU: 1500 * time.Millisecond, Memory: Memory{Own: 1000 << 10, Shared: 50 << 10}, asOf: now}
	if len(all) != 1 || all[0] != want {
		t.Fatalf("got %+v, want %+v", all, want)
	}
	// Memory is not looked at again at once, and is when it is stale.
	h["proc/101/smaps_rollup"].Data = []byte("Pss_Anon: 7 kB\n")
	now = now.Add(stale - time.Second)
	if got := v.All()[0].Memory; got != want.Memory {
		t.Errorf("read again after %v: %+v", stale-time.Second, got)
	}
	now = now.Add(time.Second)
	if got := v.All()[0].Memory; got.Own != 7<<10 {
		t.Errorf("not read again after %v: %+v", stale, got)
	}
	// Another process in a cgroup of the same name is another VMM.
	h["sys/fs/cgroup/emberd-1/vm_a/cgroup.procs"].Data = []byte("555\n")
	now = now.Add(fresh)
	if got := v.All()[0]; got.PID != 555 || got.Memory != (Memory{}) {
		t.Errorf("got %+v", got)
	}
	if got := NewVMMs(h, "/emberd-2").All(); len(got) != 0 {
		t.Errorf("got %+v of another daemon", got)
	}
}

// However many VMMs there are, a look takes as long as it may, and the next ones
// see to the rest.
func TestLookingIsBounded(t *testing.T) {
	vmms := map[string][2]int{}
	for i := range 100 {
		vmms[fmt.Sprintf("vm_%03d", i)] = [2]int{1, 1}
	}
	now := time.Unix(1e9, 0)
	v := NewVMMs(host(vmms), "emberd-1")
	v.now = func() time.Time { now = now.Add(2 * time.Millisecond); return now }
	known := 0
	for looks := 1; known < 100; looks++ {
		before := known
		known = 0
		for _, vmm := range v.All() {
			if vmm.Memory.Own > 0 {
				known++
			}
		}
		if known-before > int(budget/(2*time.Millisecond)) || known == before || looks > 6 {
			t.Fatalf("look %d: %d were known, then %d", looks, before, known)
		}
		now = now.Add(fresh)
	}
}

// However long it takes to find the VMMs, some of them are looked at.
func TestSlowHost(t *testing.T) {
	now := time.Unix(1e9, 0)
	v := NewVMMs(host(map[string][2]int{"vm_a": {1, 1}}), "emberd-1")
	v.now = func() time.Time { now = now.Add(budget - 1); return now }
	if got := v.All(); len(got) != 1 || got[0].Memory.Own == 0 {
		t.Errorf("got %+v", got)
	}
}

func TestNativeHistograms(t *testing.T) {
	registry := prometheus.NewRegistry()
	tel := New(registry, "test", nil)
	tel.Publish(sandbox.Event{Kind: sandbox.EventReady, BootPath: sandbox.Pooled, Took: 4 * time.Millisecond})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var found *dto.Histogram
	for _, family := range families {
		if family.GetName() == "emberd_create_seconds" {
			found = family.GetMetric()[0].GetHistogram()
		}
	}
	if found == nil || found.GetSampleCount() != 1 || len(found.GetPositiveSpan()) == 0 || len(found.GetBucket()) == 0 {
		t.Errorf("got %v", found)
	}
	// Scrapers that can read them get them.
	contentType, body, err := tel.Metrics(http.Header{"Accept": {"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"}})
	if err != nil || !strings.HasPrefix(contentType, "application/vnd.google.protobuf") || len(body) == 0 {
		t.Errorf("%s, %d bytes, %v", contentType, len(body), err)
	}
}

// What is only to be counted pushes out nothing that happened.
func TestCountOnly(t *testing.T) {
	tel := New(prometheus.NewRegistry(), "test", nil)
	tel.Publish(sandbox.Event{Kind: sandbox.EventReady})
	for range kept {
		tel.Publish(sandbox.Event{Kind: sandbox.EventEgressDenied, Denied: &sandbox.EgressDenial{Count: 1}, CountOnly: true})
	}
	if p := tel.Since(""); len(p.Events) != 1 || p.Events[0].Kind != sandbox.EventReady {
		t.Errorf("kept are %d events", len(p.Events))
	}
}
