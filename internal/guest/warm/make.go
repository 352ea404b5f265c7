package warm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/reaper"
)

// orphanTicks is how many milliseconds the parent of a process that a zygote
// forked may take to end.
const orphanTicks = 1000

// A zygote and what it forks have their control sockets where every program finds
// what it is handed. A program that becomes a ready process itself has it above the
// descriptors that its interpreter opens while it starts: those have the numbers of
// a plain one's that way, and no gap is left among them.
const (
	zygoteControl   = 3
	prestartControl = 63
)

// prestart makes ready processes by starting them.
type prestart struct{ cfg Config }

func (s *prestart) make(ctx context.Context) (*ready, error) {
	from := s.cfg.origin()
	p, control, err := launch(s.cfg, prestartControl)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = control.SetDeadline(time.Unix(1, 0)) })()
	r := &ready{proc: p, control: control, origin: from}
	pid, err := greeting(control, startTimeout)
	if err == nil && pid != p.Child().Pid() {
		err = fmt.Errorf("process %d says that it is %d", p.Child().Pid(), pid)
	}
	if err != nil {
		r.discard()
		return nil, err
	}
	return r, nil
}

func (s *prestart) close() {}

// forkserver makes ready processes by having a zygote fork them.
type forkserver struct {
	cfg     Config
	zygote  *proc.Process
	control *os.File
	origin  origin
	forked  bool // it has done so before
}

func (s *forkserver) make(ctx context.Context) (*ready, error) {
	if err := s.stand(); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = s.control.SetDeadline(time.Unix(1, 0)) })()
	r, err := s.fork(ctx)
	if err != nil {
		// Whatever is wrong with a zygote, the next one does not have it.
		s.close()
		return nil, err
	}
	s.forked = true
	return r, nil
}

// stand starts the zygote unless there is one that lives, and was started
// from what is there today.
func (s *forkserver) stand() (err error) {
	if s.zygote != nil {
		select {
		case <-s.zygote.Child().Done():
		default:
			if s.origin.is(s.cfg.origin()) {
				return nil
			}
		}
		s.close()
	}
	s.origin = s.cfg.origin()
	s.zygote, s.control, err = launch(s.cfg, zygoteControl)
	if err != nil {
		s.zygote = nil
		return err
	}
	s.zygote.Silence()
	s.forked = false
	return nil
}

// fork has the zygote make a process in a slot, and adopts it.
func (s *forkserver) fork(ctx context.Context) (*ready, error) {
	slot, err := s.cfg.Runner.NewSlot()
	if err != nil {
		return nil, err
	}
	defer slot.CloseFiles()
	own, theirs, err := socketPair()
	if err != nil {
		slot.Discard()
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	defer context.AfterFunc(ctx, func() { _ = own.SetDeadline(time.Unix(1, 0)) })()
	if err := s.ask(append(slot.Files(), theirs)); err != nil {
		slot.Discard()
		return nil, errors.Join(err, own.Close())
	}
	// A zygote that gives up closes its copy, which is noticed only if there is
	// none here.
	_ = theirs.Close()
	p, err := s.adopt(slot, own)
	if err != nil {
		slot.Discard()
		return nil, errors.Join(err, own.Close())
	}
	return &ready{proc: p, control: own, origin: s.origin}, nil
}

// ask sends the zygote the descriptors of the process that is wanted.
func (s *forkserver) ask(files []*os.File) error {
	fds := make([]int, len(files))
	for n, f := range files {
		fds[n] = int(f.Fd())
	}
	conn, err := s.control.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = conn.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), []byte("F"), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sent, unix.EAGAIN)
	})
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("ask the zygote: %w", err)
	}
	return nil
}

// adopt waits for the process that the zygote makes, and puts it into its slot.
func (s *forkserver) adopt(slot *proc.Slot, control *os.File) (*proc.Process, error) {
	timeout := startTimeout
	if s.forked {
		timeout = forkTimeout
	}
	pid, err := greeting(control, timeout)
	if err != nil {
		return nil, err
	}
	child, err := s.cfg.Reaper.Adopt(pid)
	if err != nil {
		return nil, err
	}
	p, err := slot.Join(child)
	if err == nil {
		err = orphaned(child)
	}
	if err != nil {
		s.cfg.Reaper.Disown(child)
		return nil, err
	}
	return p, nil
}

// orphaned waits until child is this process's, which it is as soon as its
// parent has ended. Nothing tells when that is.
func orphaned(child *reaper.Child) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range orphanTicks {
		if child.Adopted() {
			return nil
		}
		<-tick.C
	}
	return fmt.Errorf("process %d has another parent", child.Pid())
}

// close ends the zygote.
func (s *forkserver) close() {
	if s.zygote == nil {
		return
	}
	s.zygote.Kill()
	s.zygote.Discard()
	_ = s.control.Close()
	s.zygote = nil
}

// launch starts the recipe's program with a control socket as its descriptor fd.
func launch(cfg Config, fd int) (*proc.Process, *os.File, error) {
	own, theirs, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = theirs.Close() }()
	files := make([]*os.File, fd-2) // from 3 on; nil is closed
	files[fd-3] = theirs
	p, err := cfg.Runner.Start(proc.Command{Argv: cfg.Recipe.Argv, Files: files})
	if err != nil {
		return nil, nil, errors.Join(err, own.Close())
	}
	return p, own, nil
}
