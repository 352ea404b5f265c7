package real

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// bombs are what one sandbox does to itself, all at once.
var bombs = map[string]string{
	"processes": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
	"memory":    "b = []\nwhile True: b.append(bytearray(1 << 20))",
	"CPU":       "while True: pass",
	"disk":      "f = open('/fill', 'wb')\nwhile True:\n try: f.write(bytes(1 << 20))\n except OSError: f.flush()",
	"files":     "import os\nn = 0\nwhile True:\n n += 1\n os.close(os.open(f'/tmp/{n}', os.O_CREAT))",
}

// A sandbox in which everything is used up is its own problem: the neighbour
// goes on, the daemon answers, and it can be deleted.
func TestBombs(t *testing.T) {
	h := newHost(t)
	neighbour, victim := h.create(t, "shell"), h.create(t, "python")
	ask := func(ctx context.Context) error {
		res, err := h.Exec(ctx, neighbour, client.Program{Code: "echo ok"})
		if err == nil && string(res.Stdout) != "ok\n" {
			err = errors.New("wrong output " + string(res.Stdout) + res.Err)
		}
		return err
	}
	idle := oracle.Watch(t.Context(), 200*time.Millisecond, ask)
	time.Sleep(4 * time.Second)
	before := idle.Stop()

	ctx, end := context.WithCancel(t.Context())
	defer end()
	var bombing sync.WaitGroup
	for _, code := range bombs {
		// None of them ends well, and in which way is the guest's affair.
		bombing.Go(func() { _, _ = h.Exec(ctx, victim, client.Program{Code: code, Timeout: time.Minute}) })
	}
	grown := peak(t, h.vmm(t, victim))
	execs := oracle.Watch(t.Context(), 200*time.Millisecond, ask)
	health := oracle.Watch(t.Context(), 100*time.Millisecond, h.Healthy)
	time.Sleep(20 * time.Second)
	during, healthy := execs.Stop(), health.Stop()
	t.Logf("neighbour's exec, idle: %v; under bombs: %v (p99 ratio %.1f)", before, during,
		float64(during.Percentile(99))/float64(before.Percentile(99)))
	t.Logf("/healthz: %v; the VMM grew by %d MiB", healthy, grown()>>20)
	// Both share one CPU with the tests themselves, so the ratio has room here.
	oracle.Report(t, append(during.Findings("the neighbour's exec", max(10*before.Percentile(99), 2*time.Second)),
		healthy.Findings("/healthz", time.Second)...))

	began := time.Now()
	if err := h.Delete(t.Context(), victim); err != nil && !isNotFound(err) {
		t.Error(err)
	}
	took := time.Since(began)
	t.Logf("deleted in %v", took)
	if took > 10*time.Second {
		t.Errorf("its delete took %v", took)
	}
	end()
	bombing.Wait()
}
