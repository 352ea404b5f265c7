// Package daemontest breaks daemons, in processes of their own, and judges what
// the next one makes of it.
//
// The one idea: a [Point] is a step of the daemon's at which a test can break it,
// and what it has to be asked for to come there. [Stand.Sweep] has a daemon fail
// there, stop there for a while, and be killed there, and holds what clients were
// told against what there is. The table of points is all there are: a test reads
// the source for others.
//
// The package knows no daemon. A test binary says how one runs ([Main]), so the
// same sweep is of fake VMMs in one package and of real ones in another.
package daemontest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/x/fault"
)

// orderEnv holds the [Order] of a test binary that is to be a daemon.
const orderEnv = "EMBERD_TEST_ORDER"

// patience is how long a daemon may take for anything, on a host that is busy.
const patience = 60 * time.Second

// Order is what a daemon is to be.
type Order struct {
	// Dir is where it works; what that means is the test binary's to know.
	Dir string
	// Listen is where it serves the API; empty is any address.
	Listen string
	// Templates and Pool say whether it has any.
	Templates, Pool bool
	// Keep has it leave its sandboxes when it is asked to end.
	Keep bool
	// Files bounds the files that it may have open, if it is not zero.
	Files uint64
	// Break is the step at which it breaks from its beginning on.
	Break Breakage
}

// Way is how a step breaks.
type Way string

// The ways. None has the next visits go on undisturbed.
const (
	None  Way = ""
	Fails Way = "fails" // once
	Stops Way = "stops" // until it is told to go on
	Kills Way = "kills" // the daemon
)

// Breakage is a step that breaks.
type Breakage struct {
	Point string
	Visit int
	Way   Way
}

// What a daemon says on its standard output, beside its address, and what it is
// told beside a [Breakage].
const (
	saysArmed   = "armed"
	saysReached = "reached"
	tellGoOn    = "go on"
)

// Main runs a daemon, if this process was started to be one, and does not return
// then. run has it say its address as soon as it listens.
func Main(run func(o Order, faults *fault.Set, say func(addr string)) error) {
	order := os.Getenv(orderEnv)
	if order == "" {
		return
	}
	_ = os.Unsetenv(orderEnv)
	var o Order
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		panic(err)
	}
	b := &breaker{goOn: make(chan struct{})}
	b.arm(o.Break)
	go b.listen(os.Stdin)
	if err := run(o, &b.faults, func(addr string) { fmt.Println(addr) }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// breaker breaks the steps of the daemon in this process.
type breaker struct {
	faults fault.Set
	goOn   chan struct{}
}

// listen does what the test says, and ends the daemon when there is no test any
// more.
func (b *breaker) listen(in io.Reader) {
	defer os.Exit(1)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if lines.Text() == tellGoOn {
			b.goOn <- struct{}{}
			continue
		}
		var at Breakage
		if err := json.Unmarshal(lines.Bytes(), &at); err != nil {
			panic(err)
		}
		b.arm(at)
		fmt.Println(saysArmed)
	}
}

func (b *breaker) arm(at Breakage) {
	if at.Way == None {
		return
	}
	var mu sync.Mutex
	visits := 0
	b.faults.Do(at.Point, func() error {
		mu.Lock()
		visits++
		now := visits == at.Visit
		mu.Unlock()
		if !now {
			return nil
		}
		fmt.Println(saysReached)
		switch at.Way {
		case Kills:
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case Stops:
			<-b.goOn
		case Fails:
			return &fault.Error{Point: at.Point}
		}
		return nil
	})
}

// Daemon is one in a process of its own.
type Daemon struct {
	*client.Client
	Addr string
	Cmd  *exec.Cmd
	// Reached says each time that the daemon has come to a step that breaks.
	Reached chan struct{}
	// Ended is closed when the process has, with Err.
	Ended chan struct{}
	Err   error

	t     testing.TB
	tell  io.Writer
	armed chan struct{}
	began time.Time
	// TookReady is how long it took from its start until it was ready.
	TookReady time.Duration
}

// Start starts a daemon and returns when it listens. It is killed with the test.
func Start(t testing.TB, o Order) *Daemon {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	order, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{t: t, Cmd: exec.Command(self), Ended: make(chan struct{}), began: time.Now()}
	d.Cmd.Env = append(os.Environ(), orderEnv+"="+string(order))
	d.Cmd.Stderr = os.Stderr
	if d.tell, err = d.Cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := d.Cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.Reached, d.armed = make(chan struct{}, 1), make(chan struct{}, 1)
	addr := make(chan string, 1)
	go d.follow(out, addr)
	t.Cleanup(d.Kill)
	select {
	case d.Addr = <-addr:
	case <-d.Ended:
		select {
		case d.Addr = <-addr: // it was killed just then
		default:
			t.Fatalf("the daemon does not start: %v", d.Err)
		}
	}
	d.Client = client.New(d.Addr)
	return d
}

// follow reads what the daemon says, to its end, which it waits for.
func (d *Daemon) follow(out io.Reader, addr chan<- string) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch line := lines.Text(); line {
		case saysReached:
			select {
			case d.Reached <- struct{}{}:
			default: // nobody cares for the last one either
			}
		case saysArmed:
			d.armed <- struct{}{}
		default:
			addr <- line
		}
	}
	d.Err = d.Cmd.Wait()
	close(d.Ended)
}

// Arm has a step break from now on, once.
func (d *Daemon) Arm(at Breakage) {
	d.t.Helper()
	line, err := json.Marshal(at)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.tell.Write(append(line, '\n')); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.armed:
	case <-d.Ended:
		d.t.Fatalf("the daemon has ended: %v", d.Err)
	}
}

// GoOn has a step that stopped go on.
func (d *Daemon) GoOn() {
	d.t.Helper()
	if _, err := io.WriteString(d.tell, tellGoOn+"\n"); err != nil {
		d.t.Fatal(err)
	}
}

// AwaitReady waits until the daemon is ready, and tells whether it is: it may
// have been killed before.
func (d *Daemon) AwaitReady() bool {
	d.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := d.Ready(d.t.Context())
		if err == nil {
			d.TookReady = time.Since(d.began)
			return true
		}
		select {
		case <-d.Ended:
			return false
		default:
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("the daemon does not become ready: %v", err)
		}
	}
}

// Kill ends the daemon as nothing else would, and waits for its end.
func (d *Daemon) Kill() {
	if err := d.Cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Error(err)
	}
	<-d.Ended
}

// Stop asks the daemon to end, and fails the test if it does not do so in order.
func (d *Daemon) Stop() {
	d.t.Helper()
	if err := d.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Error(err)
	}
	select {
	case <-d.Ended:
		if d.Err != nil {
			d.t.Errorf("the daemon ended: %v", d.Err)
		}
	case <-time.After(patience):
		d.t.Error("the daemon does not end")
	}
}
