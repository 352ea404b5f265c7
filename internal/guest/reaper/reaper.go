// Package reaper is the only caller of wait4 in PID 1.
//
// A process is started and registered under the lock that reaping takes, so a
// status that is collected always belongs to a registered child or to an orphan
// that PID 1 adopted: no exit code is lost, and none is stolen. A reaper that
// does not own every child of its process, as in tests, waits for each of its
// own and leaves the others alone.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper starts processes and collects every exit status. Any number of
// goroutines may use it.
type Reaper struct {
	adopting bool

	mu       sync.Mutex
	children map[int]*Child // only when adopting
	waits    sync.WaitGroup
}

// New returns a reaper that waits for the processes it starts and no others.
func New() *Reaper { return &Reaper{} }

// NewInit returns a reaper for PID 1 (or a child subreaper), which owns every
// child its process has or will have. It collects nothing until Run is called,
// and nothing else in the process may wait for a child.
func NewInit() *Reaper {
	return &Reaper{adopting: true, children: make(map[int]*Child)}
}

// Child is a process that a [Reaper] started or adopted.
type Child struct {
	pid     int
	process *os.Process // nil for one that was adopted
	done    chan struct{}
	status  syscall.WaitStatus
}

// Pid is the child's process id. It may be used again by the kernel once Done
// is closed.
func (c *Child) Pid() int { return c.pid }

// Done is closed when the child has ended and was reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status is how the child ended. It is valid once Done is closed.
func (c *Child) Status() syscall.WaitStatus { return c.status }

func (c *Child) end(status syscall.WaitStatus) {
	c.status = status
	close(c.done)
}

// Start starts the program at path, as [os.StartProcess] does.
func (r *Reaper) Start(path string, argv []string, attr *os.ProcAttr) (*Child, error) {
	if !r.adopting {
		return r.startAlone(path, argv, attr)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &Child{pid: p.Pid, process: p, done: make(chan struct{})}
	r.children[p.Pid] = c
	return c, nil
}

// Adopt registers the process pid, which runs and was started by a process of
// this one's, so that its status is kept. When its parent ends it becomes a
// child of PID 1's; until it is one, see [Child.Adopted], Done means nothing.
func (r *Reaper) Adopt(pid int) (*Child, error) {
	if !r.adopting {
		return nil, errors.New("this process adopts nobody")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case pid <= 1 || pid == os.Getpid() || r.children[pid] != nil:
		return nil, fmt.Errorf("process %d is none to adopt", pid)
	case syscall.Kill(pid, 0) != nil:
		return nil, fmt.Errorf("process %d is gone", pid)
	}
	c := &Child{pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// Disown forgets a child whose status nobody wants.
func (r *Reaper) Disown(c *Child) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[c.pid] == c {
		delete(r.children, c.pid)
	}
}

// Adopted tells whether c, which runs, is a child of this process by now.
func (c *Child) Adopted() bool {
	return unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == nil
}

func (r *Reaper) startAlone(path string, argv []string, attr *os.ProcAttr) (*Child, error) {
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &Child{pid: p.Pid, process: p, done: make(chan struct{})}
	r.waits.Go(func() {
		state, err := p.Wait()
		if err != nil {
			// Wait fails only for a process that somebody else reaped.
			panic(fmt.Sprintf("reaper: wait for own child %d: %v", p.Pid, err))
		}
		c.end(state.Sys().(syscall.WaitStatus))
	})
	return c, nil
}

// Run reaps until ctx ends. A reaper made by [New] has nothing to do here: it
// returns when ctx has ended and its own children have too.
func (r *Reaper) Run(ctx context.Context) {
	if !r.adopting {
		<-ctx.Done()
		r.waits.Wait()
		return
	}
	// One slot is enough: a signal that finds it full is covered by the round
	// that will follow.
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	for {
		r.reap()
		select {
		case <-died:
		case <-ctx.Done():
			return
		}
	}
}

// reap collects every child that has ended by now.
func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		c, ok := r.children[pid]
		if !ok {
			continue
		}
		delete(r.children, pid)
		if c.process != nil {
			// The kernel's handle on the process is of no use to a reaped child.
			_ = c.process.Release()
		}
		c.end(status)
	}
}
