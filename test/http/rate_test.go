package http

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/apikey"
)

// What a client sends that floods, what it may have of that, and for how long.
const (
	flooded, allowed = 2000, 1000
	floodTime        = 10 * time.Second
)

// TestRateAndFairness has the holder of one API key send twice as many requests as
// a key may, and measures what it gets, and what the holder of another one has of
// it. As in [TestSlowClients], a server beside the daemon tells what is the host's
// doing.
func TestRateAndFairness(t *testing.T) {
	needs(t)
	s := start(t, "/bin/true")
	id := s.create(t)
	flooder, _ := s.createKey(t)
	good, _, err := apikey.Create(s.data.Keys(), "good")
	if err != nil {
		t.Fatal(err)
	}
	bystander := startSelf(t, bystanderEnv, "yes").line
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second}
	t.Cleanup(hc.CloseIdleConnections)
	for deadline := time.Now().Add(5 * time.Second); s.get(t, hc, id, good) != http.StatusOK; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the key is not good")
		}
	}
	beside := func() int { timed(t, hc, "http://"+bystander); return http.StatusOK }
	asGood := func() int { return s.get(t, hc, id, good) }
	alone := latency(t, 3*time.Second, asGood, beside)

	ctx, stop := context.WithCancel(t.Context())
	var sent, got, refused atomic.Int64
	var flood sync.WaitGroup
	for range 50 {
		flood.Go(func() {
			tick := time.NewTicker(time.Second * 50 / flooded)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				sent.Add(1)
				switch status := s.get(t, hc, id, flooder); status {
				case http.StatusOK:
					got.Add(1)
				case http.StatusTooManyRequests:
					refused.Add(1)
				default:
					t.Errorf("who floods is answered with %d", status)
				}
			}
		})
	}
	time.Sleep(2 * time.Second) // in which it has what is allowed at once
	sentBefore, gotBefore, began := sent.Load(), got.Load(), time.Now()
	during := latency(t, floodTime, asGood, beside)
	took := time.Since(began).Seconds()
	rate, offered := float64(got.Load()-gotBefore)/took, float64(sent.Load()-sentBefore)/took
	stop()
	flood.Wait()
	t.Logf("of %.0f requests a second %.0f were carried out; p99 of another key is %v, and was %v", offered, rate, during, alone)
	if offered < allowed*1.2 {
		t.Fatalf("%.0f requests a second are no flood: the host is too busy", offered)
	}
	if rate < allowed*0.9 || rate > allowed*1.1 {
		t.Errorf("%.0f requests a second were carried out, of %d that are allowed", rate, allowed)
	}
	if most := maxSlower*max(alone[0], during[1]) + floor; during[0] > most {
		t.Errorf("p99 is %v; %v is allowed", during[0], most)
	}
	if refused.Load() == 0 {
		t.Error("nothing was refused")
	}
}

// get asks for a sandbox, and returns the status.
func (s *server) get(t *testing.T, hc *http.Client, id, key string) int {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+"/sandboxes/"+id, nil)
	if err != nil {
		t.Error(err)
		return 0
	}
	r.Header.Set("Authorization", "Bearer "+key)
	resp, err := hc.Do(r)
	if err != nil {
		t.Error(err)
		return 0
	}
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") != "1" {
		t.Errorf("it is told to come back after %q s", resp.Header.Get("Retry-After"))
	}
	return resp.StatusCode
}

// latencies are the p99 of several requests.
type latencies [2]time.Duration

func (l latencies) String() string {
	return fmt.Sprintf("%v (%v of the server beside it)", l[0], l[1])
}

// latency makes two requests in turn for some time.
func latency(t *testing.T, d time.Duration, ask ...func() int) (p latencies) {
	t.Helper()
	var took [2][]time.Duration
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for i, ask := range ask {
			began := time.Now()
			if status := ask(); status != http.StatusOK {
				t.Errorf("a client of good will got %d", status)
			}
			took[i] = append(took[i], time.Since(began))
		}
	}
	return latencies{p99(took[0]), p99(took[1])}
}
