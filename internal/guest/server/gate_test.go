package server

import (
	"errors"
	"testing"
	"testing/synctest"
)

func TestNothingRunsWhileAVMIsArmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		if err := g.enter(); err != nil {
			t.Fatalf("a rehearsal is refused: %v", err)
		}
		armed := make(chan error, 1)
		took := false
		go func() { armed <- g.arm(func() error { took = true; return nil }) }()
		synctest.Wait()
		if took {
			t.Error("the VM is armed while a program runs")
		}
		if err := g.enter(); err == nil {
			t.Error("a program is let in while the VM is armed")
		}
		if err := g.arm(func() error { return nil }); err == nil {
			t.Error("a VM is armed twice at once")
		}
		g.leave()
		if err := <-armed; err != nil || !took {
			t.Errorf("arming: %v", err)
		}
		if err := g.enter(); err != nil {
			t.Errorf("an armed VM refuses a program: %v", err)
		}
		g.leave()
		if err := g.arm(func() error { return nil }); err != nil {
			t.Errorf("a VM cannot be armed again: %v", err)
		}
	})
}

func TestAVMThatCouldNotBeArmedIsUseless(t *testing.T) {
	broken := errors.New("broken")
	synctest.Test(t, func(t *testing.T) {
		var busy, failed gate
		if err := busy.enter(); err != nil {
			t.Fatal(err)
		}
		if err := busy.arm(func() error { t.Error("it was armed though a program runs"); return nil }); err == nil {
			t.Error("a busy VM was armed")
		}
		busy.leave()
		if err := failed.arm(func() error { return broken }); !errors.Is(err, broken) {
			t.Errorf("error is %v", err)
		}
		for name, g := range map[string]*gate{"busy": &busy, "failed": &failed} {
			if err := g.enter(); err == nil {
				t.Errorf("%s: a program is let in", name)
			}
			if err := g.arm(func() error { return nil }); err == nil {
				t.Errorf("%s: another arming mends it", name)
			}
		}
	})
}
