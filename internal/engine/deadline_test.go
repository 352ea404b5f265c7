package engine

import (
	"testing"
	"testing/synctest"
	"time"
)

// An alarm goes off at the earliest time that it was set to since it was called off.
func TestAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAlarm(time.Now)
		began := time.Now()
		expect := func(want time.Duration) {
			t.Helper()
			select {
			case <-a.timer.C:
			case <-time.After(time.Hour):
				t.Fatal("it did not go off")
			}
			if got := time.Since(began); got != want {
				t.Errorf("it went off after %v, want %v", got, want)
			}
			a.off()
		}
		a.by(time.Time{})
		a.by(began.Add(3 * time.Second))
		a.by(began.Add(2 * time.Second))
		a.by(began.Add(4 * time.Second))
		a.by(time.Time{})
		expect(2 * time.Second)
		// What it was set to and has not come is to be said again.
		a.by(began.Add(4 * time.Second))
		expect(4 * time.Second)
		a.by(began) // is over
		expect(4 * time.Second)
		select {
		case <-a.timer.C:
			t.Error("it went off though nobody had set it")
		case <-time.After(time.Hour):
		}
	})
}
