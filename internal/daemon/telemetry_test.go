package daemon

import (
	"context"
	"strings"
	"testing"

	"github.com/emberd/emberd/client"
)

// What happened can be seen in the daemon's metrics, and a daemon that ends lets
// those go who follow its events.
func TestTelemetryOfALife(t *testing.T) {
	cfg := fakeConfig(t)
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()

	followed := make(chan string)
	go func() {
		var kinds []string
		for event, err := range client.New(d.Addr()).Follow(context.WithoutCancel(ctx), "") {
			if err != nil {
				t.Error(err)
			}
			kinds = append(kinds, event.Event.Event)
		}
		followed <- strings.Join(kinds, " ")
	}()

	c := client.New(d.Addr())
	id, err := c.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), id, client.Program{Code: "exit 3"}); err != nil {
		t.Fatal(err)
	}
	stats, err := c.Stats(t.Context())
	if err != nil || len(stats.Sandboxes) != 1 || stats.Sandboxes[0].ID != id || stats.Total.PromisedMiB == 0 {
		t.Errorf("%+v, %v", stats, err)
	}
	metrics, err := c.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`emberd_sandboxes{state="running"} 1`, `emberd_execs_total{result="failed"} 1`, `emberd_creates_total{boot_path="cold-boot",result="ok"} 1`,
		`emberd_http_requests_total{route="POST /sandboxes",status="201"} 1`, `emberd_templates{state="`,
	} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("%s is missing in\n%s", want, metrics)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := <-followed; got != "created ready exec deleted" {
		t.Errorf("followed %q", got)
	}
}
