package daemon

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon/daemontest"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// BenchmarkRestart says how long it takes from a daemon's end until the next one
// is ready, by the sandboxes that it goes on with, and for how long of it nobody
// listens. No service manager keeps the listener here.
func BenchmarkRestart(b *testing.B) {
	for _, n := range []int{0, 8, 32} {
		b.Run(fmt.Sprintf("sandboxes=%d", n), func(b *testing.B) {
			s := fakeStand(b)
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			order := daemontest.Order{Dir: s.Dir, Listen: free.Addr().String(), Keep: true}
			_ = free.Close()
			d := daemontest.Start(b, order)
			d.AwaitReady()
			for range n {
				if _, err := d.Create(b.Context(), "shell"); err != nil {
					b.Fatal(err)
				}
			}
			var ready, refused time.Duration
			for b.Loop() {
				d.Kill()
				gone := time.Now()
				d = daemontest.Start(b, order)
				for {
					if err := d.Healthy(b.Context()); !errors.Is(err, client.ErrUnreachable) {
						break
					}
				}
				refused += time.Since(gone)
				d.AwaitReady()
				ready += d.TookReady
			}
			b.ReportMetric(float64(ready.Milliseconds())/float64(b.N), "ms-to-ready")
			b.ReportMetric(float64(refused.Milliseconds())/float64(b.N), "ms-refused")
			order.Keep = false
			d.Kill()
			d = daemontest.Start(b, order)
			d.AwaitReady()
			d.Stop()
		})
	}
}

// BenchmarkLife says what a sandbox's life costs a daemon whose VMMs cost nothing,
// and what is left of many: two clients create, run a program and delete.
func BenchmarkLife(b *testing.B) {
	s := fakeStand(b)
	d := daemontest.Start(b, daemontest.Order{Dir: s.Dir})
	d.AwaitReady()
	life := func() {
		id, err := d.Create(b.Context(), "shell")
		if err != nil {
			b.Error(err)
			return
		}
		if res, err := d.Exec(b.Context(), id, client.Program{Code: "exit 5"}); err != nil || res.ExitCode != 5 {
			b.Errorf("%+v, %v", res, err)
		}
		if err := d.Delete(b.Context(), id); err != nil {
			b.Error(err)
		}
	}
	quiet := func() (rss, files, routines float64) {
		for deadline := time.Now().Add(20 * time.Second); s.VMMs() > 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		}
		memory, err := oracle.RSS(d.Cmd.Process.Pid)
		if err != nil {
			b.Fatal(err)
		}
		metrics, err := d.Metrics(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		n, err := strconv.Atoi(string(regexp.MustCompile(`(?m)^go_goroutines (\d+)$`).FindSubmatch(metrics)[1]))
		if err != nil {
			b.Fatal(err)
		}
		return float64(memory) / (1 << 10), float64(filesOf(b, d.Cmd.Process.Pid)), float64(n)
	}
	for range 20 {
		life()
	}
	rss, files, routines := quiet()
	b.SetParallelism(1)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			life()
		}
	})
	b.StopTimer()
	nowRSS, nowFiles, nowRoutines := quiet()
	b.ReportMetric(nowRSS-rss, "KiB-more")
	b.ReportMetric(nowFiles-files, "files-more")
	b.ReportMetric(nowRoutines-routines, "goroutines-more")
	for _, left := range s.Left() {
		b.Errorf("left behind: %s", left)
	}
	d.Stop()
}
