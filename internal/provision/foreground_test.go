package provision

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestStandBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lull, patience = time.Second, time.Minute
		f := NewForeground(2)
		check := func(when string, stop <-chan struct{}, want time.Duration) {
			t.Helper()
			began := time.Now()
			f.StandBack(stop, lull, patience)
			if got := time.Since(began); got != want {
				t.Errorf("%s it waited %v, want %v", when, got, want)
			}
		}
		check("with nothing to do", nil, 0)
		f.Enter()
		check("with a CPU to spare", nil, 0)
		f.Enter()
		f.Enter()
		check("with none to spare", nil, patience)

		time.AfterFunc(time.Second, f.Leave)
		time.AfterFunc(3*time.Second, f.Leave)
		check("until one is to spare", nil, 3*time.Second+lull)
		check("and then", nil, 0)

		f.Enter()
		time.AfterFunc(time.Second, func() { f.Leave(); time.Sleep(lull / 2); f.Enter() })
		time.AfterFunc(5*time.Second, f.Leave)
		check("with a gap that is no lull", nil, 5*time.Second+lull)

		f.Enter()
		stop := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(stop) })
		check("until it was called off", stop, time.Second)
	})
}
