package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/x/cleanup"
)

const (
	// heartbeat is how often PID 1 is asked whether it is there.
	heartbeat = 2 * time.Second
	// bootTimeout bounds the time until PID 1 answers, apiTimeout the time from
	// there until emberd does. A loaded host makes emulation many times slower.
	bootTimeout = 2 * time.Minute
	apiTimeout  = 2 * time.Minute
	// endGrace is how long QEMU is given to end after the connection to PID 1
	// broke, so that its own end is reported and not only what came of it.
	endGrace = 2 * time.Second
)

// Causes for which a machine goes down.
var (
	errStopped   = errors.New("stopped")
	errAbandoned = errors.New("whoever started the machine went away")
	errStalled   = fmt.Errorf("PID 1 did not answer for %v; the emulation has stalled", StallAfter)
	errLost      = errors.New("the connection to PID 1 broke; the emulation has stalled")
)

// The file descriptors a supervisor is started with.
const (
	controlFD = 3
	lockFD    = 4
)

// spec is what a supervisor is told on its control connection. It answers with
// events; the connection stays open until the machine is up, and when it breaks
// before, the machine goes down again.
type spec struct {
	Machine Machine
	Listen  string
	Vmlinuz string
}

// event is what a supervisor reports while the machine starts.
type event struct {
	Step  string `json:"step,omitempty"`
	Ready bool   `json:"ready,omitempty"`
	Error string `json:"error,omitempty"`
}

// supervisor owns one machine while it is up.
type supervisor struct {
	spec
	log     *slog.Logger
	control net.Conn
	events  *json.Encoder
	// beat is how often PID 1 is asked whether it is there, stallAfter how long
	// it may not answer.
	beat, stallAfter time.Duration

	qemu    *qemu
	session *agent.Session

	mu  sync.Mutex
	rec record
}

// Supervise runs the machine that [Machine.Start] describes on an inherited
// connection, until ctx ends or the machine does. Only a process that Start
// made can call it.
func Supervise(ctx context.Context, log *slog.Logger) error {
	unix.CloseOnExec(lockFD)
	lock := os.NewFile(lockFD, "lock")
	defer func() { _ = lock.Close() }()
	file := os.NewFile(controlFD, "control")
	control, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		return errors.New("a supervisor is started by emberctl machine start only")
	}
	defer func() { _ = control.Close() }()
	s := &supervisor{
		log: log, control: control, events: json.NewEncoder(control), beat: heartbeat, stallAfter: StallAfter,
	}
	if err := json.NewDecoder(control).Decode(&s.spec); err != nil {
		return fmt.Errorf("read what to supervise: %w", err)
	}
	err = s.run(ctx)
	if errors.Is(err, errStopped) {
		log.Info("machine stopped", "machine", s.Machine.Name)
		return os.RemoveAll(s.Machine.Run)
	}
	log.Error("machine ended", "machine", s.Machine.Name, "err", err)
	// Nobody listens any more unless the machine was still starting.
	_ = s.events.Encode(event{Error: err.Error()})
	return err
}

// run brings the machine up, serves it and takes it down. It returns why the
// machine went down; the state file says so before any client can notice.
func (s *supervisor) run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	serve, endServe := context.WithCancel(context.WithoutCancel(ctx))
	defer endServe()
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)

	err := s.boot(ctx, life, end, &running)
	if err == nil {
		err = s.serve(serve, &running)
	}
	if err == nil {
		_ = s.control.Close()
		select {
		case <-ctx.Done():
			s.powerOff(ctx)
			err = errStopped
		case <-life.Done():
			err = context.Cause(life)
		}
	}
	s.update(func(rec *record) {
		rec.State, rec.Reason = Exited, err.Error()
		if errors.Is(err, errStalled) || errors.Is(err, errLost) {
			rec.State = Stalled
		}
	})
	if s.session != nil {
		_ = s.session.Close()
	}
	if s.qemu != nil {
		s.qemu.kill()
	}
	return err
}

// boot starts QEMU and returns when PID 1 answers and, in a machine that
// listens, emberd too. Its goroutines end with life, which it ends with the
// cause when the machine goes down.
func (s *supervisor) boot(ctx, life context.Context, end context.CancelCauseFunc, running *sync.WaitGroup) error {
	booting, endBoot := context.WithCancelCause(life)
	defer endBoot(nil)
	defer context.AfterFunc(ctx, func() { endBoot(errStopped) })()
	var watching sync.WaitGroup
	watching.Go(func() {
		// Nothing is sent here; the connection only ever breaks.
		_, _ = io.Copy(io.Discard, s.control)
		endBoot(errAbandoned)
	})
	defer watching.Wait()
	defer func() { _ = s.control.SetReadDeadline(time.Unix(1, 0)) }()

	console, err := openLog(s.Machine.ConsoleLog(), maxLog)
	if err != nil {
		return err
	}
	s.rec = record{Status: Status{
		Name: s.Machine.Name, State: Starting, Listen: s.Listen, StartedAt: time.Now().UTC(), SupervisorPID: os.Getpid(),
	}}
	if s.rec.SupervisorStart, err = startTime(os.Getpid()); err != nil {
		return err
	}
	s.step("starting QEMU")
	if s.qemu, err = s.Machine.startQEMU(s.Vmlinuz, console); err != nil {
		return err
	}
	running.Go(func() {
		<-s.qemu.exited
		end(s.qemu.err)
		_ = console.Close()
	})
	s.update(func(rec *record) { rec.QEMUPID = s.qemu.pid() })

	s.step("booting the machine")
	if err := s.openSession(booting); err != nil {
		return err
	}
	running.Go(func() { s.watch(life, end) })
	if s.Listen == "" {
		return nil
	}
	s.step("waiting for emberd")
	return s.startDaemon(booting, ctx, life, running)
}

// openSession connects to PID 1.
func (s *supervisor) openSession(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("PID 1 did not answer within %v", bootTimeout))
	defer cancel()
	s.session, err = agent.Open(ctx, s.qemu.port, s.log)
	if err == nil {
		return nil
	}
	if ended := s.qemuEnd(ctx); ended != nil {
		return ended
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("connect to PID 1: %w", err)
}

// qemuEnd returns how QEMU ended, or nil if it goes on. The connection to PID 1
// can break a moment before QEMU has ended.
func (s *supervisor) qemuEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endGrace)
	defer cancel()
	s.qemu.wait(ctx)
	select {
	case <-s.qemu.exited:
		return s.qemu.err
	default:
		return nil
	}
}

// watch ends life when PID 1 does not answer any more.
func (s *supervisor) watch(life context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(s.beat)
	defer tick.Stop()
	last, used := time.Now(), usageOf(s.qemu.pid())
	for {
		ping, cancel := context.WithDeadline(life, last.Add(s.stallAfter))
		err := s.session.Ping(ping)
		cancel()
		switch {
		case err == nil:
			last, used = time.Now(), usageOf(s.qemu.pid())
		case time.Since(last) >= s.stallAfter:
			end(fmt.Errorf("%w; %s", errStalled, usageOf(s.qemu.pid()).since(used)))
			return
		}
		select {
		case <-life.Done():
			return
		case <-s.session.Done():
			end(cmp.Or(s.qemuEnd(life), errLost))
			return
		case <-tick.C:
		}
	}
}

// serve opens the machine to clients until ctx ends.
func (s *supervisor) serve(ctx context.Context, running *sync.WaitGroup) error {
	socket, err := net.Listen("unix", s.Machine.agentSocket())
	if err != nil {
		return fmt.Errorf("listen for execs: %w", err)
	}
	running.Go(func() { forward(ctx, socket, s.session.OpenStream, s.log) })
	if s.Listen != "" {
		api, err := net.Listen("tcp", s.Listen)
		if err != nil {
			return fmt.Errorf("listen for API requests: %w", err)
		}
		running.Go(func() { forward(ctx, api, s.dialAPI, s.log) })
	}
	s.update(func(rec *record) { rec.State = Running })
	if err := s.events.Encode(event{Ready: true}); err != nil {
		return errAbandoned
	}
	s.log.Info("machine is up", "machine", s.Machine.Name, "took_ms", time.Since(s.rec.StartedAt).Milliseconds())
	return nil
}

// powerOff has PID 1 stop what runs, put the disks in order and power off. It
// returns when the machine is off, or when that takes too long.
func (s *supervisor) powerOff(ctx context.Context) {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	exit, err := s.session.Exec(ctx, agent.Command{Argv: []string{guestInit, "poweroff"}}, agent.Stdio{})
	if exit.StartError != "" {
		err = errors.New(exit.StartError)
	}
	if err != nil {
		s.log.Warn("machine cannot be powered off, killing it", "machine", s.Machine.Name, "err", err)
		return
	}
	s.qemu.wait(ctx)
}

// step tells the starter what is being done now.
func (s *supervisor) step(name string) {
	s.update(func(*record) {})
	// A starter that is gone is noticed where it matters.
	_ = s.events.Encode(event{Step: name})
}

// update changes the state file.
func (s *supervisor) update(change func(*record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.rec)
	if err := s.Machine.writeRecord(s.rec); err != nil {
		s.log.Error("state is not recorded", "machine", s.Machine.Name, "err", err)
	}
}
