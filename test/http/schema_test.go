package http

import (
	"context"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
)

// TestSchema has schemathesis make up requests from the published OpenAPI
// document, good and bad, alone and one after the other. What it asks of the
// answers is that none is a server's error, that each is as documented, and that
// what is gone stays gone.
//
// One of its checks is left out, that what the document allows is accepted: the
// names of packs and the ceilings of limits are those of a daemon, and no part
// of the interface.
func TestSchema(t *testing.T) {
	needs(t, "schemathesis")
	// The programs that are made up are not to run on this host.
	s := start(t, "/bin/true")
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { deleteOldest(ctx, s.client, 40) })
	t.Cleanup(func() { cancel(); running.Wait() })

	cmd := exec.CommandContext(t.Context(), "schemathesis", "run", "http://"+s.addr+"/openapi.json",
		"--checks", "all", "--exclude-checks", "positive_data_acceptance",
		"--workers", "2", "--seed", "1", "--max-examples", "300", "--max-failures", "20", "--no-shrink", "--max-time", "90",
		"--request-timeout", "20", "--warnings", "off", "--generation-database", "none")
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", tail(string(out), 200))
	if err != nil {
		t.Error(err)
	}
}

// deleteOldest keeps the sandboxes that a fuzzer forgets from piling up.
func deleteOldest(ctx context.Context, c *client.Client, keep int) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
		list, err := c.List(ctx)
		if err != nil {
			continue
		}
		for _, sb := range list[:max(0, len(list)-keep)] {
			_ = c.Delete(ctx, sb.ID)
		}
	}
}

// tail returns the last lines of text.
func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
