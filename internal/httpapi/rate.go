package httpapi

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/emberd/emberd/internal/sandbox"
)

// errRate refuses a request that came too soon after others.
var errRate = &sandbox.Error{Code: sandbox.CodeRate, Message: "there were too many requests with this API key; --request-rate says how many there may be"}

// rates bounds how many requests come with each API key, so that one who sends
// too many is slowed down and not everybody. Where no key is asked for, there is
// nobody to be fair to.
type rates struct {
	perSecond int

	mu    sync.Mutex
	byKey map[string]*rate.Limiter
}

// newRates allows each key that many requests a second, and as many at once; 0 is
// any number.
func newRates(perSecond int) *rates {
	return &rates{perSecond: perSecond, byKey: make(map[string]*rate.Limiter)}
}

// allow counts a request with the key called id, and tells whether it may be
// carried out.
func (r *rates) allow(id string, now time.Time) bool {
	if r.perSecond == 0 || id == "" {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.byKey[id]
	if l == nil {
		// One that was not used for a second is as good as none.
		maps.DeleteFunc(r.byKey, func(_ string, l *rate.Limiter) bool {
			return l.TokensAt(now) >= float64(l.Burst())
		})
		l = rate.NewLimiter(rate.Limit(r.perSecond), r.perSecond)
		r.byKey[id] = l
	}
	return l.AllowN(now, 1)
}
