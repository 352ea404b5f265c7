package real

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/provision/pool"
)

// withPool is a daemon that keeps n microVMs of python ready.
func withPool(n int) func(*daemon.Config) {
	return func(c *daemon.Config) {
		c.Templates, c.Shells = true, 2
		c.Pool = map[string]pool.Bounds{"python": {Min: n, Max: n}}
	}
}

// awaitPool waits until the pool is full, and for what is done behind it.
func (h *host) awaitPool(t *testing.T) rest.PoolStock {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		stocks, err := h.Pool(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if stocks[0].Ready == stocks[0].Max {
			return stocks[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pool does not fill: %+v", stocks[0])
		}
	}
}

// What is handed out is ready and waits for no boot, and a delete answers before
// the microVM is gone.
func TestPool(t *testing.T) {
	const rounds = 5
	h := newHost(t, withPool(2))
	h.awaitPool(t)
	took := map[string][]time.Duration{}
	var idle, used []int
	timed := func(what string, f func() error) {
		t.Helper()
		began := time.Now()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		took[what] = append(took[what], time.Since(began))
	}
	for range rounds {
		h.awaitPool(t)
		time.Sleep(500 * time.Millisecond) // for the shells that are made behind the pool
		var id string
		timed("create", func() (err error) {
			id, err = h.Create(t.Context(), "python", client.WithBootPath("pool"))
			return err
		})
		run := func() error {
			res, err := h.Exec(t.Context(), id, client.Program{Code: "print(6*7)"})
			if err == nil && string(res.Stdout) != "42\n" {
				t.Errorf("%q %q", res.Stdout, res.Stderr)
			}
			return err
		}
		idle = append(idle, pss(t, h.vmm(t, id)))
		timed("first exec", run)
		timed("next exec", run)
		if sb, err := h.Get(t.Context(), id); err != nil || sb.BootPath != "pool" {
			t.Errorf("by %s, %v", sb.BootPath, err)
		}
		used = append(used, pss(t, h.vmm(t, id)))
		timed("delete", func() error { return h.Delete(t.Context(), id) })
	}
	if s := h.awaitPool(t); s.Hits != rounds || s.Misses != 0 || s.Failures != 0 {
		t.Errorf("counted %+v", s)
	}
	for what, took := range took {
		t.Logf("%s: %v", what, median(took))
	}
	slices.Sort(idle)
	slices.Sort(used)
	t.Logf("PSS: %d KiB idle, %d KiB after two programs", idle[rounds/2], used[rounds/2])
}

// Creates in a row meet no error, whether the pool keeps up or not,
// and none of them waits for a boot.
func TestCreatesInARow(t *testing.T) {
	const atOnce = 4
	n := 24
	if *long {
		n = 100
	}
	h := newHost(t, withPool(4))
	h.awaitPool(t)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		paths = map[string]int{}
	)
	began := time.Now()
	for range atOnce {
		wg.Go(func() {
			for range n / atOnce {
				id, err := h.Create(t.Context(), "python")
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				sb, err := h.Get(t.Context(), id)
				if err != nil {
					t.Errorf("get: %v", err)
				}
				if err := h.Delete(t.Context(), id); err != nil {
					t.Errorf("delete: %v", err)
				}
				mu.Lock()
				paths[sb.BootPath]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	s := h.awaitPool(t)
	t.Logf("%d creates in %v, %.1f a second: %v; pool %+v", n, took, float64(n)/took.Seconds(), paths, s)
	if paths["cold-boot"] > 0 || s.Failures > 0 {
		t.Errorf("%d were booted although there is a template, %d refills failed", paths["cold-boot"], s.Failures)
	}
}

// A daemon that ends while its pool fills leaves nothing of it.
func TestShutdownWhileThePoolFills(t *testing.T) {
	h := newHost(t, withPool(3))
	h.awaitPool(t)
	for range 2 {
		if _, err := h.Create(t.Context(), "python", client.WithBootPath("pool")); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond) // into a refill
	h.stop()
}
