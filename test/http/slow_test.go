package http

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
)

// For how long slow clients attack, and what they may do to the others.
const (
	quietTime, attackTime = 10 * time.Second, 60 * time.Second

	goneWithin = 30 * time.Second
	maxGrowth  = 64 << 20
	maxSlower  = 2
	// floor is what may come on top: of requests that take a millisecond, the
	// scheduler of a busy host makes one in a hundred wait for as long as that.
	floor = 3 * time.Millisecond
)

// TestSlowClients has more than a thousand clients send their headers and bodies
// byte by byte, and read nothing, and measures what a client of good will has of
// it.
//
// The slow clients are a process of their own, but not a host of their own: what
// they take of this one's CPUs is not the daemon's doing, and neither is what
// other programs take. So there is a second server, which nobody attacks, and
// the client asks both in turn. The daemon may be slower than it was by what
// that server is slow.
func TestSlowClients(t *testing.T) {
	needs(t)
	s := start(t, "/bin/true")
	id := s.create(t)
	bystander := startSelf(t, bystanderEnv, "yes").line
	before := s.measure(t, quietTime, id, bystander)
	files := s.fds(t)

	attackers := startSelf(t, attackEnv, s.addr+" "+id)
	time.Sleep(gathering)
	attacked := s.fds(t) - files
	during := s.measure(t, attackTime, id, bystander)
	began := time.Now()
	if err := attackers.in.Close(); err != nil {
		t.Fatal(err)
	}
	for s.fds(t) > files+5 {
		if time.Since(began) > goneWithin {
			t.Errorf("%v after the attack there are %d connections left", goneWithin, s.fds(t)-files)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	gone := time.Since(began)

	grew := during.memory - before.memory
	t.Logf("before: %v", before)
	t.Logf("during: %v", during)
	t.Logf("%d connections at a time; the daemon grew by %d MiB; all gone after %v", attacked, grew>>20, gone)
	if attacked < (slowHeaders+slowBodies+neverRead)*9/10 {
		t.Errorf("only %d connections were open: that was no attack", attacked)
	}
	if allowed := maxSlower*max(before.p99, during.bystander) + floor; during.p99 > allowed {
		t.Errorf("p99 is %v; %v is allowed", during.p99, allowed)
	}
	if grew > maxGrowth {
		t.Errorf("the daemon grew by %d MiB", grew>>20)
	}
}

// sample is what clients of good will had of the daemon for some time, and of
// the server beside it.
type sample struct {
	requests       int
	p99, bystander time.Duration
	memory         int64 // the daemon's, at most
}

func (s sample) String() string {
	return fmt.Sprintf("p99 of %d requests is %v, and %v of the server beside it; the daemon has %d MiB",
		s.requests, s.p99, s.bystander, s.memory>>20)
}

// measure asks the daemon and the server beside it in turn, each time on a
// connection of its own.
func (s *server) measure(t *testing.T, d time.Duration, id, bystander string) (got sample) {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	var took, beside []time.Duration
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		took = append(took, timed(t, hc, "http://"+s.addr+"/sandboxes/"+id))
		beside = append(beside, timed(t, hc, "http://"+bystander))
		got.memory = max(got.memory, s.rss(t))
	}
	got.requests, got.p99, got.bystander = len(took), p99(took), p99(beside)
	return got
}

// timed is how long one request takes.
func timed(t *testing.T, hc *http.Client, url string) time.Duration {
	t.Helper()
	began := time.Now()
	resp, err := hc.Get(url)
	if err != nil {
		t.Errorf("a client of good will: %v", err)
		return time.Since(began)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a client of good will got %s", resp.Status)
	}
	return time.Since(began)
}

// p99 is the 99th percentile.
func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*99/100]
}
