package template

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/digest"
	"github.com/emberd/emberd/internal/x/swapdir"
)

// Fault points of the making of a template, beside those of a boot, a snapshot
// and a restore.
const (
	FaultDir      = "template.dir"
	FaultBoot     = "template.boot"
	FaultWarm     = "template.warm"
	FaultRehearse = "template.rehearse"
	FaultSeal     = "template.seal"
	FaultProve    = "template.prove"
	FaultWrite    = "template.write"
	FaultPublish  = "template.publish"
)

// FaultPoints are the steps of the making of a template that a test can break.
var FaultPoints = []string{FaultDir, FaultBoot, FaultWarm, FaultRehearse, FaultSeal, FaultProve, FaultWrite, FaultPublish}

// rehearsals is how many programs are run before the snapshot is taken, so that
// what a program needs is in the guest's memory.
const rehearsals = 3

// rehearsalTimeout bounds one of them.
const rehearsalTimeout = 20 * time.Second

// job is the making of a template.
type job struct {
	done  chan struct{}
	phase atomic.Value // what it does, as people are told
	since time.Time    // when it began to
	log   *slog.Logger
}

// enter says what is done from now on, and logs how long the last phase took.
func (j *job) enter(phase string) {
	last, _ := j.phase.Swap(phase).(string)
	j.log.Debug("template", "phase", last, "duration_ms", time.Since(j.since).Milliseconds())
	j.since = time.Now()
}

// inputs are the digests of what every VM is booted from.
type inputs struct{ kernel, initrd string }

func (s *Templates) hashInputs() (in inputs, err error) {
	if in.kernel, err = digest.File(s.cfg.Kernel); err != nil {
		return in, err
	}
	in.initrd, err = digest.File(s.cfg.Initrd)
	return in, err
}

// key is the key of the template of a kind, today.
func (s *Templates) key(k Kind) (Key, error) {
	in, err := s.inputs()
	if err != nil {
		return Key{}, err
	}
	return Key{
		Host: s.cfg.Host, Size: k.Size, Kernel: in.kernel, Initramfs: in.initrd, Rootfs: k.Pack.Digest,
		BootArgs: provision.BootArgs(k.Pack), Network: k.Network, Format: format,
	}, nil
}

// begin begins to make the template of a slot, once after is closed. The caller
// holds s.mu.
func (s *Templates) begin(sl *slot, k Kind, after <-chan struct{}) {
	j := &job{done: make(chan struct{}), since: time.Now(), log: s.cfg.Log}
	j.enter("waiting")
	sl.job = j
	s.wg.Go(func() {
		defer close(j.done)
		began := time.Now()
		t, err := s.obtain(j, k, after)
		j.enter("done")
		s.mu.Lock()
		defer s.mu.Unlock()
		sl.job, sl.template, sl.err = nil, t, err
		if err == nil {
			sl.failures = 0
			s.cfg.Log.Info("template is ready", "pack", k.Pack.Name, "memory_mib", k.Size.MemoryMiB, "vcpus", k.Size.VCPUs,
				"network", k.Network, "template", t.Key.ID(), "duration_ms", time.Since(began).Milliseconds())
			return
		}
		sl.retry = time.Now().Add(min(minRetry<<sl.failures, maxRetry))
		sl.failures = min(sl.failures+1, 10)
		if s.ctx.Err() == nil {
			s.cfg.Log.Error("template was not made", "pack", k.Pack.Name, "memory_mib", k.Size.MemoryMiB, "vcpus", k.Size.VCPUs,
				"network", k.Network, "err", err)
		}
	})
}

// obtain returns a template that is verified: the one on the disk, or else a new
// one.
func (s *Templates) obtain(j *job, k Kind, after <-chan struct{}) (*template, error) {
	for _, awaited := range []<-chan struct{}{s.swept, after} {
		select {
		case <-awaited:
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
	s.building.Lock()
	defer s.building.Unlock()
	ctx, cancel := context.WithTimeoutCause(s.ctx, s.cfg.BuildTimeout, errors.New("it took too long"))
	defer cancel()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	key, err := s.key(k)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.cfg.Dir, key.ID())
	j.enter("verifying")
	if _, err := os.Lstat(dir); err == nil {
		t, err := load(ctx, dir, key, k.Pack.RootfsPath)
		if err == nil || ctx.Err() != nil {
			return t, err
		}
		s.cfg.Log.Error("template is refused", "pack", k.Pack.Name, "template", key.ID(), "err", err)
		s.count(func(c *Counts) { c.Refused++ })
		if err := remove(dir); err != nil {
			return nil, err
		}
	}
	t, err := s.build(ctx, j, dir, key, k.Pack)
	s.count(func(c *Counts) {
		if err == nil {
			c.Builds++
		} else {
			c.Failures++
		}
	})
	return t, err
}

// build makes a template in dir. On error nothing is left of it.
func (s *Templates) build(ctx context.Context, j *job, dir string, key Key, p pack.Pack) (_ *template, err error) {
	partial := dir + partialSuffix
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(partial))
		}
	}()
	if err := remove(partial); err != nil {
		return nil, err
	}
	var m manifest
	for _, step := range []struct {
		fault, phase string
		do           func() error
	}{
		{FaultDir, "booting", func() error { return os.Mkdir(partial, 0o700) }},
		{FaultBoot, "booting", func() error { return s.snapshot(ctx, j, partial, key, p) }},
		{FaultSeal, "hashing", func() (err error) { m, err = seal(ctx, partial, p.Name, key); return err }},
		{FaultProve, "restoring", func() error { return s.prove(ctx, partial, &m, p) }},
		{FaultWrite, "publishing", func() error { return m.write(partial) }},
		{FaultPublish, "publishing", func() error { return swapdir.Publish(partial, dir) }},
	} {
		j.enter(step.phase)
		if err := s.cfg.Faults.Hit(step.fault); err != nil {
			return nil, err
		}
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.phase, err)
		}
	}
	return look(dir, m, p.RootfsPath)
}

// nothing is what the VMs may reach that a template is made and proved with, nil if
// they have no network interface.
func nothing(network bool) *sandbox.Egress {
	if !network {
		return nil
	}
	return &sandbox.Egress{}
}

// snapshot boots the VM of a template, prepares it, and leaves its snapshot in
// dir.
func (s *Templates) snapshot(ctx context.Context, j *job, dir string, key Key, p pack.Pack) (err error) {
	id := sandbox.NewVMID()
	nic := provision.NewInterface(s.cfg.Networks, id, nothing(key.Network))
	defer func() { err = errors.Join(err, nic.Close()) }()
	vm, err := firecracker.Boot(ctx, s.cfg.Launcher, firecracker.Config{
		ID: id, Size: key.Size, Kernel: s.cfg.Kernel, Initrd: s.cfg.Initrd, Rootfs: p.RootfsPath,
		BootArgs: key.BootArgs, Interface: nic.OfVM(), Snapshots: true,
	}, s.cfg.Faults)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Kill(ctx)) }()
	session, err := provision.Hello(ctx, vm, s.cfg.Log, s.cfg.Faults)
	if err != nil {
		return fmt.Errorf("%w\nconsole: %s", err, vm.Console())
	}
	j.enter("warming up")
	err = errors.Join(s.warmUp(ctx, session), session.Close())
	if err != nil {
		return fmt.Errorf("%w\nconsole: %s", err, vm.Console())
	}
	j.enter("snapshotting")
	return vm.Snapshot(ctx, dir, s.cfg.Faults)
}

// warmUp has the guest do what its clones are to find done.
func (s *Templates) warmUp(ctx context.Context, session *agent.Session) error {
	if err := s.cfg.Faults.Hit(FaultWarm); err != nil {
		return err
	}
	if err := session.Warm(ctx); err != nil {
		return err
	}
	if err := s.cfg.Faults.Hit(FaultRehearse); err != nil {
		return err
	}
	for range rehearsals {
		if err := rehearse(ctx, session); err != nil {
			return err
		}
	}
	// The snapshot is not to hold an interpreter that is just being started: each
	// clone would wait for it.
	return session.Warm(ctx)
}

// rehearse runs a program that does nothing.
func rehearse(ctx context.Context, session *agent.Session) error {
	exit, err := session.Exec(ctx, agent.Command{Code: provision.EmptyProgram, Timeout: rehearsalTimeout}, agent.Stdio{})
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	if exit.Code != 0 || exit.StartError != "" || exit.TimedOut {
		return fmt.Errorf("rehearse: an empty program ended with %+v", exit)
	}
	return nil
}

// prove restores a VM from a template that nobody uses yet, and runs a program in
// it. It notes in m what others are going to write to.
func (s *Templates) prove(ctx context.Context, dir string, m *manifest, p pack.Pack) (err error) {
	t, err := look(dir, *m, p.RootfsPath)
	if err != nil {
		return err
	}
	size := m.Key.Size
	limits := sandbox.Limits{Size: size, DiskMiB: size.MemoryMiB / 2, PIDs: sandbox.DefaultPolicy().Default.PIDs}
	req := provision.Request{
		Pack: p, Limits: limits, Egress: nothing(m.Key.Network), Begin: func(sandbox.VMID) error { return nil },
	}
	vm, err := s.restore(ctx, t, req)
	if errors.Is(err, errTooLong) && ctx.Err() == nil {
		// A guest may stall as it goes on, as one may while it boots, and has one more
		// try as well: a template that is made anew takes longer.
		s.cfg.Log.Warn("restored guest did not answer, restoring it again", "pack", p.Name, "err", err)
		s.count(func(c *Counts) { c.FailedRestores++ })
		vm, err = s.restore(ctx, t, req)
	}
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := cleanup.Context(ctx)
		defer cancel()
		err = errors.Join(err, vm.Kill(ctx))
	}()
	armed, blind := vm.Written(t.snapshot)
	// What was ready before it was armed is made anew.
	if err := errors.Join(vm.Agent.Warm(ctx), rehearse(ctx, vm.Agent), vm.Agent.Warm(ctx)); err != nil {
		return err
	}
	rehearsed, err := vm.Written(t.snapshot)
	if err := errors.Join(blind, err); err != nil {
		s.cfg.Log.Warn("restores take longer than they need to", "pack", p.Name, "err", err)
		return nil
	}
	m.Armed, m.Rehearsed = armed, rehearsed
	return nil
}
