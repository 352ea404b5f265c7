package provision

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestStandBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewForeground(2)
		waited := func(ctx context.Context) time.Duration {
			began := time.Now()
			f.StandBack(ctx, time.Minute)
			return time.Since(began)
		}
		f.Enter()
		if got := waited(t.Context()); got != 0 {
			t.Errorf("with a CPU to spare it waited %v", got)
		}
		f.Enter()
		f.Enter()
		if got := waited(t.Context()); got != time.Minute {
			t.Errorf("with none to spare it waited %v", got)
		}
		time.AfterFunc(time.Second, f.Leave)
		time.AfterFunc(3*time.Second, f.Leave)
		if got := waited(t.Context()); got != 3*time.Second {
			t.Errorf("until one is to spare it waited %v", got)
		}
		f.Enter()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := waited(ctx); got != time.Second {
			t.Errorf("until it was called off it waited %v", got)
		}
	})
}
