package server

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// idleTimeout is how long an arming waits for operations that are at their end.
const idleTimeout = 5 * time.Second

// gate lets programs run in a VM that is in order. Before it is armed the first
// time, only what prepares it runs there; from the beginning of an arming to
// its success nothing does, and after one that failed, nothing ever again.
type gate struct {
	mu       sync.Mutex
	running  int
	idle     chan struct{} // closed when running is zero; made by who waits
	arming   bool
	unusable error
}

// enter counts an operation in that leave counts out.
func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refusal(); err != nil {
		return err
	}
	g.running++
	return nil
}

// stay counts once more an operation that has entered, and so can be left twice.
func (g *gate) stay() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// arm has take give the VM its identity while nothing runs.
func (g *gate) arm(take func() error) error {
	idle, err := g.shut()
	if err != nil {
		return err
	}
	if err = wait(idle); err == nil {
		err = take()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.arming = false
	if err != nil {
		g.unusable = err
	}
	return err
}

// shut lets nothing in any more and returns a channel that is closed when
// everything is out.
func (g *gate) shut() (<-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refusal(); err != nil {
		return nil, err
	}
	g.arming = true
	idle := make(chan struct{})
	if g.running == 0 {
		close(idle)
	} else {
		g.idle = idle
	}
	return idle, nil
}

func (g *gate) refusal() error {
	switch {
	case g.unusable != nil:
		return fmt.Errorf("this VM could not be armed: %w", g.unusable)
	case g.arming:
		return errors.New("this VM is being armed")
	}
	return nil
}

func wait(idle <-chan struct{}) error {
	timer := time.NewTimer(idleTimeout)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
		return errors.New("this VM is in use")
	}
}
