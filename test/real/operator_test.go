package real

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// hog needs more memory than a small sandbox has.
const hog = `a = []
while True: a.append(b"x" * (1 << 20))`

// What an operator is told agrees with what happened: creates, programs, one that
// has no memory left, a VMM that is killed, deletes; and with what the host says of
// the VMMs. Eight sandboxes take no more of the daemon than they may.
func TestWhatOperatorsSee(t *testing.T) {
	const crowd = 8
	p := startProcess(t, "--templates=true", "--shells", "1", "--default-memory", "128")
	if _, err := p.BuildTemplate(t.Context(), rest.TemplateRequest{LanguagePack: "python"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follower := make(chan []string, 1)
	go func() {
		var told []string
		for event, err := range p.Follow(ctx, "") {
			if err != nil {
				break // it was told to end
			}
			told = append(told, event.SandboxID+" "+event.Event.Event+" "+event.Reason)
		}
		follower <- told
	}()

	var ids []string
	for range crowd {
		id, err := p.Create(t.Context(), "python", client.WithBootPath("restore"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	run := func(id, code string) client.Result {
		t.Helper()
		res, err := p.Exec(t.Context(), id, client.Program{Code: code})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	run(ids[0], "print(6*7)")
	run(ids[0], "raise SystemExit(3)")
	if res := run(ids[1], hog); !slices.Contains(res.LimitsHit, "memory_mib") {
		t.Errorf("the hog ended with %d and ran into %q", res.ExitCode, res.LimitsHit)
	}
	p.checkDaemon(t, crowd)
	p.checkMemory(t, ids)

	in, err := p.Inspect(t.Context(), ids[2])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(in.Jail.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[3:] {
		if err := p.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	ends := fmt.Sprintf(`emberd_sandbox_ends_total{kind="deleted",reason="request"} %d`, crowd-3)
	metrics := p.awaitMetric(t, ends)
	for _, want := range []string{
		`emberd_creates_total{boot_path="restore",result="ok"} ` + strconv.Itoa(crowd),
		`emberd_create_seconds_count{boot_path="restore"} ` + strconv.Itoa(crowd),
		`emberd_execs_total{result="ok"} 1`, `emberd_ooms_total{where="guest"} 1`,
		`emberd_sandbox_ends_total{kind="lost",reason="vmm_ended"} 1`,
		`emberd_sandboxes{state="running"} 2`, `emberd_templates{state="ready"} 1`, `emberd_template_builds_total{result="ok"} 1`,
		`emberd_http_requests_total{route="POST /sandboxes",status="201"} ` + strconv.Itoa(crowd),
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
	cancel()
	p.checkEvents(t, <-follower, ids)
	if t.Failed() {
		t.Logf("metrics:\n%s", metrics)
	}
}

// checkEvents checks what a follower was told of some sandboxes.
func (p *process) checkEvents(t *testing.T, told, ids []string) {
	t.Helper()
	for i, want := range map[int]string{
		0: "created ready exec/ok exec/failed", 1: "created ready exec/failed oom/guest",
		2: "created ready lost/vmm_ended", 3: "created ready deleted/request",
	} {
		var got []string
		for _, line := range told {
			if about, ok := strings.CutPrefix(line, ids[i]+" "); ok {
				got = append(got, strings.ReplaceAll(strings.TrimSpace(about), " ", "/"))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("of sandbox %d a follower heard %q, want %q", i, got, want)
		}
	}
	kept, err := p.Events(t.Context(), "")
	if err != nil || len(kept.Events) != len(told) {
		t.Errorf("%d events are kept, %d were followed, %v", len(kept.Events), len(told), err)
	}
}

// checkDaemon checks what the daemon itself takes with so many sandboxes.
func (p *process) checkDaemon(t *testing.T, sandboxes int) {
	t.Helper()
	rss, err := oracle.RSS(p.pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the daemon has %.1f MiB with %d sandboxes", float64(rss)/(1<<20), sandboxes)
	if rss > 64<<20 {
		t.Errorf("the daemon takes %d MiB, 64 are allowed", rss>>20)
	}
}

// checkMemory compares what the daemon says of VMMs with what the kernel does.
func (p *process) checkMemory(t *testing.T, ids []string) {
	t.Helper()
	stats := p.awaitStats(t)
	if len(stats.Sandboxes) != len(ids) {
		t.Fatalf("%d sandboxes, want %d", len(stats.Sandboxes), len(ids))
	}
	for _, s := range stats.Sandboxes {
		in, err := p.Inspect(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		kernel := int64(pss(t, in.Jail.PID)) << 10
		said := s.OwnBytes + s.SharedBytes
		if s.PID != in.Jail.PID || s.CPUUS == 0 || said < kernel*8/10 || said > kernel*12/10 {
			t.Errorf("%s: pid %d, cpu %d µs, %d KiB; the kernel says %d, %d KiB", s.ID, s.PID, s.CPUUS, said>>10, in.Jail.PID, kernel>>10)
		}
	}
	t.Logf("%d VMMs: %.1f MiB of their own, %.1f shared", stats.Total.VMMs, float64(stats.Total.OwnBytes)/(1<<20), float64(stats.Total.SharedBytes)/(1<<20))
}

// awaitStats returns what sandboxes use once the memory of each was looked at,
// which may take more than one look.
func (p *process) awaitStats(t *testing.T) rest.Stats {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Second) {
		stats, err := p.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(stats.Sandboxes, func(u rest.Usage) bool { return u.OwnBytes == 0 }) {
			return stats
		}
		if time.Now().After(deadline) {
			t.Fatalf("the memory of some VMM is never looked at: %+v", stats)
		}
	}
}

// awaitMetric returns the metrics once a line is among them.
func (p *process) awaitMetric(t *testing.T, line string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		b, err := p.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\n"+line+"\n") {
			return string(b)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come:\n%s", line, b)
		}
	}
}
