package daemon

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/sandbox"
)

// A daemon with a pool hands out what is ready, says so, and leaves nothing.
func TestDaemonWithAPool(t *testing.T) {
	cfg := fakeConfig(t)
	cfg.Pool = map[string]pool.Bounds{"shell": {Min: 1, Max: 1}, "python": {}}
	perVM := sandbox.DefaultSize.PromisedMiB()
	cfg.Capacity.MemoryMiB = 3 * perVM // two sandboxes, and one that waits
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	c := client.New(d.Addr())
	full := func() rest.PoolStock {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			stocks, err := c.Pool(t.Context())
			if err != nil || len(stocks) != 1 || time.Now().After(deadline) {
				t.Fatalf("pool: %+v, %v", stocks, err)
			}
			if stocks[0].Ready == 1 {
				return stocks[0]
			}
		}
	}
	full()
	if info, err := c.Info(t.Context()); err != nil || info.BootPath != "pool" || len(info.Pool) != 1 {
		t.Errorf("info: %+v, %v", info, err)
	}
	id, err := c.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	if sb, err := c.Get(t.Context(), id); err != nil || sb.BootPath != "pool" {
		t.Errorf("by %s, %v", sb.BootPath, err)
	}
	if records, err := os.ReadDir(cfg.RunDir.Sandboxes()); err != nil || len(records) != 1 {
		t.Errorf("records: %v, %v", records, err)
	}
	other, err := c.Create(t.Context(), "shell", client.WithBootPath("cold-boot"))
	if err != nil {
		t.Fatal(err)
	}
	if sb, err := c.Get(t.Context(), other); err != nil || sb.BootPath != "cold-boot" {
		t.Errorf("by %s, %v", sb.BootPath, err)
	}
	if s := full(); s.Hits != 1 || s.Misses != 0 || s.Refills != 2 {
		t.Errorf("counted %+v", s)
	}
	// What waits is not to be had by more sandboxes than the host has room for.
	if _, err := c.Create(t.Context(), "shell"); err == nil || !strings.Contains(err.Error(), "0 of 640 MiB are free") {
		t.Errorf("a third sandbox: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if pids := cfg.Launcher.(*fctest.Launcher).Running(); len(pids) > 0 {
		t.Errorf("VMMs left running: %v", pids)
	}
}

func TestPoolsThatCannotBe(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no such pack": {func(c *Config) { c.Pool = map[string]pool.Bounds{"ruby": {Min: 1, Max: 1}} }, `unknown language pack: "ruby"`},
		"no room":      {func(c *Config) { c.Pool = map[string]pool.Bounds{"shell": {Max: 1}}; c.Capacity.MemoryMiB = 600 }, "320 MiB, of 600"},
		"bounds":       {func(c *Config) { c.Pool = map[string]pool.Bounds{"shell": {Min: 3, Max: 1}} }, "3 to 1"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := fakeConfig(t)
			tt.change(&cfg)
			if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// What is told about the daemon as a whole is the fastest of its ways.
func TestFastestBootPath(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"cold-boot": func(c *Config) { c.Templates = false },
		"restore":   func(c *Config) { c.Templates, c.Pool = true, map[string]pool.Bounds{"shell": {}} },
		"pool":      func(c *Config) { c.Templates, c.Pool = false, map[string]pool.Bounds{"shell": {Max: 1}} },
	} {
		cfg := fakeConfig(t)
		change(&cfg)
		packs, err := pack.Load(cfg.DataDir)
		if err != nil {
			t.Fatal(err)
		}
		kept, _, err := planPool(cfg, packs)
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(cfg, packs, kept, "emulated").BootPath; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestDefaultPool(t *testing.T) {
	cfg := fakeConfig(t)
	for memory, want := range map[int]pool.Bounds{16 << 10: {Min: 2, Max: 4}, 4000: {Min: 2, Max: 3}, 1300: {Min: 1, Max: 1}, 1200: {}} {
		cfg.Capacity.MemoryMiB = memory
		if got := DefaultPool(cfg)["python"]; got != want {
			t.Errorf("with %d MiB: %+v, want %+v", memory, got, want)
		}
	}
	cfg.Capacity.MemoryMiB = 16 << 10
	if err := os.RemoveAll(cfg.DataDir.PackManifest("python")); err != nil {
		t.Fatal(err)
	}
	if got := DefaultPool(cfg); len(got) > 0 {
		t.Errorf("without the pack: %v", got)
	}
}
