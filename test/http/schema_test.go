package http

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
)

// How many requests are made up at least, and how long all but one in a hundred
// of those may take that start no VM.
const (
	fuzzed    = 10_000
	fuzzedP99 = 250 * time.Millisecond
)

// TestSchema has schemathesis make up requests from the published OpenAPI
// document, good and bad, alone and one after the other. What it asks of the
// answers is that none is a server's error, that each is as documented, that what
// the document allows is accepted and nothing else is, and that what is gone
// stays gone. Templates are left out: each size that is made up is one more to be
// made, by three processes and one after the other, which would take most of the
// time. So are events, as a stream of them has no end to wait for, and egress, as
// no sandbox of a daemon over fakes has an interface.
func TestSchema(t *testing.T) {
	needs(t, "schemathesis")
	all := makeUpMany(t)

	statuses := map[int]int{}
	var took []time.Duration
	for _, x := range all {
		statuses[x.Response.Status]++
		if x.Response.Status >= http.StatusInternalServerError {
			t.Errorf("%s %s: status %d", x.Request.Method, x.Request.URL, x.Response.Status)
		}
		if x.Request.Method != http.MethodPost || !strings.HasSuffix(x.Request.URL, "/sandboxes") {
			took = append(took, time.Duration(x.Time*float64(time.Millisecond)))
		}
	}
	slow := p99(took)
	t.Logf("%d requests; how many of each status: %v; p99 of those that start no VM: %v", len(all), statuses, slow)
	if slow > fuzzedP99 {
		t.Errorf("p99 is %v", slow)
	}
}

// exchange is a request and its answer in an HTTP archive.
type exchange struct {
	Request struct {
		Method string `json:"method"`
		URL    string `json:"url"`
	} `json:"request"`
	Response struct {
		Status int `json:"status"`
	} `json:"response"`
	Time float64 `json:"time"` // in milliseconds
}

// makeUpMany runs schemathesis with one seed after the other, two at a time,
// until there were enough requests, however slow the host is. Each of the two has
// a daemon of its own: that somebody else deletes its sandboxes is no fault of
// the daemon.
func makeUpMany(t *testing.T) []exchange {
	var (
		running sync.WaitGroup
		mu      sync.Mutex
		all     []exchange
		seed    int
	)
	next := func(got []exchange) int {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, got...)
		if len(all) >= fuzzed || t.Failed() {
			return 0
		}
		seed++
		return seed
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var tidying sync.WaitGroup
	for range 2 {
		// The programs that are made up are not to run on this host.
		s := start(t, "/bin/true")
		tidying.Go(func() { deleteSome(ctx, s.client, 40) })
		running.Go(func() {
			for seed := next(nil); seed > 0; {
				seed = next(makeUp(t, s.addr, seed))
			}
		})
	}
	running.Wait()
	cancel()
	tidying.Wait()
	return all
}

// makeUp runs schemathesis once, and returns what it sent and got.
func makeUp(t *testing.T, addr string, seed int) []exchange {
	dir := t.TempDir()
	hooks, err := filepath.Abs("testdata/hooks.py")
	if err != nil {
		t.Error(err)
	}
	report := filepath.Join(dir, "report.har")
	cmd := exec.CommandContext(t.Context(), "schemathesis", "run", "http://"+addr+"/openapi.json",
		"--checks", "all", "--seed", strconv.Itoa(seed), "--max-examples", "300", "--max-time", "60",
		"--exclude-path-regex", "^/(templates|events)|/egress$", "--max-failures", "20", "--no-shrink", "--request-timeout", "20", "--warnings", "off",
		"--generation-database", "none", "--report", "har", "--report-har-path", report)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SCHEMATHESIS_HOOKS="+hooks)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("seed %d: %v\n%s", seed, err, tail(string(out), 200))
	}
	var archive struct {
		Log struct {
			Entries []exchange `json:"entries"`
		} `json:"log"`
	}
	b, err := os.ReadFile(report)
	if err == nil {
		err = json.Unmarshal(b, &archive)
	}
	if err != nil || len(archive.Log.Entries) == 0 {
		t.Errorf("seed %d: no requests are reported: %v", seed, err)
	}
	return archive.Log.Entries
}

// deleteSome keeps the sandboxes that a fuzzer forgets from piling up. It leaves
// it the newest, and the first, which is the one that it takes from a list.
func deleteSome(ctx context.Context, c *client.Client, keep int) {
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
		for _, sb := range list[min(1, len(list)):max(min(1, len(list)), len(list)-keep)] {
			_ = c.Delete(ctx, sb.ID)
		}
	}
}

// tail returns the last lines of text.
func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
