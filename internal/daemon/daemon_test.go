package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/firecracker/fctest"
	"github.com/emberd/emberd/internal/paths"
)

func TestMain(m *testing.M) {
	fctest.Main()
	daemontest.Main(runVictim)
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"))
}

// fakeConfig is a daemon over fake VMMs.
func fakeConfig(t *testing.T) Config {
	t.Helper()
	dir := shortDir(t)
	fctest.Data(t, filepath.Join(dir, "data"))
	return configIn(dir)
}

// configIn is a daemon over fake VMMs in dir.
func configIn(dir string) Config {
	cfg := NewConfig()
	cfg.Listen, cfg.OnExit = "127.0.0.1:0", Stop
	cfg.DataDir = paths.Data(filepath.Join(dir, "data"))
	cfg.RunDir = paths.Run(filepath.Join(dir, "run"))
	cfg.Init = os.Args[0]
	launcher := &fctest.Launcher{Dir: dir}
	cfg.Launcher, cfg.Networks = launcher, &fctest.Networks{Launcher: launcher}
	cfg.Log = slog.New(slog.DiscardHandler)
	return cfg
}

func TestDaemonServesAndLeavesNothing(t *testing.T) {
	cfg := fakeConfig(t)
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()

	c := client.New(d.Addr())
	for i := range 2 {
		id, err := c.Create(t.Context(), "shell")
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Exec(t.Context(), id, client.Program{Code: fmt.Sprint("echo ", i)})
		if err != nil || string(res.Stdout) != fmt.Sprintln(i) {
			t.Errorf("%q, %v", res.Stdout, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if pids := cfg.Launcher.(*fctest.Launcher).Running(); len(pids) > 0 {
		t.Errorf("VMMs left running: %v", pids)
	}
	entries, err := os.ReadDir(cfg.RunDir.Sandboxes())
	if err != nil || len(entries) > 0 {
		t.Errorf("records left: %v, %v", entries, err)
	}
	// Whatever it held, the next daemon can have.
	next, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDaemonRefusesToStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, cfg *Config)
		want  []string
	}{
		{"pack without its image", func(t *testing.T, cfg *Config) {
			remove(t, cfg.DataDir.PackRootfs("shell"))
		}, []string{"pack shell", "rootfs.squashfs"}},
		{"image cut short", func(t *testing.T, cfg *Config) {
			if err := os.Truncate(cfg.DataDir.PackRootfs("python"), 100); err != nil {
				t.Fatal(err)
			}
		}, []string{"pack python", "rootfs.squashfs"}},
		{"no packs", func(t *testing.T, cfg *Config) {
			remove(t, cfg.DataDir.Packs())
		}, []string{"no language pack", "emberctl setup"}},
		{"egress without a limit", func(_ *testing.T, cfg *Config) {
			cfg.Egress.Limits.TotalMiB = 0
		}, []string{"egress-total-mib is 0"}},
		{"no init", func(_ *testing.T, cfg *Config) {
			cfg.Init = "/nonexistent/emberd-init"
		}, []string{"/nonexistent/emberd-init"}},
		{"address in use", func(t *testing.T, cfg *Config) {
			other, err := New(t.Context(), fakeConfig(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = other.Close(context.Background()) })
			cfg.Listen = other.Addr()
		}, []string{"address already in use"}},
		{"no room for a guest", func(_ *testing.T, cfg *Config) {
			cfg.Limits.Default.MemoryMiB = 16
		}, []string{"memory", "16"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := fakeConfig(t)
			tt.spoil(t, &cfg)
			d, err := New(t.Context(), cfg)
			if err == nil {
				_ = d.Close(t.Context())
				t.Fatal("it started")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestSecondDaemonNamesTheFirst(t *testing.T) {
	cfg := fakeConfig(t)
	first, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close(context.Background()) }()
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
