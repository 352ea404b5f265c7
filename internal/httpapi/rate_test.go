package httpapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/testenv"
)

// Who sends twice as many requests as are allowed has half of them carried out, and
// takes nothing from others.
func TestRates(t *testing.T) {
	const perSecond, seconds = 1000, 10
	r := newRates(perSecond)
	now := time.Now()
	allowed := map[string]int{}
	for range 2 * perSecond * seconds {
		now = now.Add(time.Second / (2 * perSecond))
		for _, id := range []string{"floods", ""} {
			if r.allow(id, now) {
				allowed[id]++
			}
		}
	}
	for range perSecond {
		if r.allow("other", now) {
			allowed["other"]++
		}
	}
	// In the first second twice as many are allowed.
	if n := allowed["floods"] - perSecond; n < perSecond*seconds*9/10 || n > perSecond*seconds*11/10 {
		t.Errorf("%d requests in %d s", n, seconds)
	}
	if allowed[""] != 2*perSecond*seconds || allowed["other"] != perSecond {
		t.Errorf("others have %v", allowed)
	}
	if !newRates(0).allow("any", now) {
		t.Error("no rate is a rate of none")
	}
	for i := range 10_000 {
		now = now.Add(10 * time.Millisecond)
		r.allow(fmt.Sprint(i), now)
	}
	if n := len(r.byKey); n > 200 {
		t.Errorf("%d keys are remembered that were not used for a second", n)
	}
}

func TestTooManyRequests(t *testing.T) {
	a := unguarded(&fakeEngine{}, nil, &testenv.Log{})
	a.rates = newRates(1)
	h := &gate{a, Access{Keys: fakeKeys{asked: true, good: t.Context()}}}
	ask := func(path string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Authorization", "Bearer good")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec
	}
	if rec := ask("/sandboxes"); rec.Code != http.StatusOK {
		t.Errorf("the first: %d %s", rec.Code, rec.Body)
	}
	rec := ask("/sandboxes")
	if want := `{"error":"there were too many requests with this API key; --request-rate says how many there may be","code":"rate_limited"}` + "\n"; rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") != "1" || rec.Body.String() != want {
		t.Errorf("the second: %d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	if rec := ask("/healthz"); rec.Code != http.StatusOK {
		t.Errorf("its health: %d", rec.Code)
	}
}
