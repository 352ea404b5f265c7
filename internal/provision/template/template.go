// Package template restores microVMs from snapshots instead of booting them.
//
// The one idea: for each pack and size a VM is booted once, its interpreter is
// warmed up, and it is stopped for good. What it leaves is a template: VMs that
// are restored from it go on from there, each in a jail and with an identity of
// its own, and share the template's memory until they write to it. A template is
// made behind the first request, which a cold boot answers.
//
// The invariant: no VM is restored from a template that was not verified as it
// is now. Its key names everything that it depends on, its files are hashed
// before they are used, and they are looked at before each restore; one that
// fails is removed and made anew. What is under a template's name is complete.
//
// The package decides nothing about what is in a pack, and keeps no VMs.
package template

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/telemetry/trace"
	"github.com/emberd/emberd/internal/x/fault"
	"github.com/emberd/emberd/internal/x/lockfile"
)

// Config is what templates are made of, and for which host.
type Config struct {
	// Cold boots what there is no template for.
	Cold     provision.Provisioner
	Launcher firecracker.Launcher
	Packs    *pack.Registry
	// Dir is where templates are kept, on the filesystem of the jails.
	Dir            string
	Kernel, Initrd string
	Host           Host
	// Size is the size for which a template is made when one is missed. For
	// others it is made when it is asked for.
	Size sandbox.Size
	// Shells is how many VMMs are kept ready, and Foreground is what their launches
	// stand back for; nil is nobody.
	Shells     int
	Foreground *provision.Foreground
	// BuildTimeout bounds the making of a template, RestoreTimeout a restore.
	BuildTimeout, RestoreTimeout time.Duration
	// Parallel is how many VMs are restored at a time; more wait for their turn.
	Parallel int
	// Records may be nil; then no VM outlives the daemon.
	Records provision.Records
	// Networks may be nil; then no VM has a network interface.
	Networks provision.Networks

	Log    *slog.Logger
	Faults *fault.Set
}

func (cfg Config) standBack(stop <-chan struct{}) {
	if cfg.Foreground != nil {
		cfg.Foreground.StandBack(stop, provision.Lull, provision.Patience)
	}
}

// Templates restores VMs, and boots those it has no template for. It is a
// [provision.Provisioner].
type Templates struct {
	cfg    Config
	shells *firecracker.Shells
	turns  chan struct{}
	inputs func() (inputs, error)
	unlock func() error
	swept  chan struct{}

	// stop ends what goes on in the background, wg waits for it.
	ctx  context.Context
	stop context.CancelCauseFunc
	wg   sync.WaitGroup

	// building is held by who makes or verifies a template: one at a time.
	building sync.Mutex

	mu     sync.Mutex
	slots  map[slotKey]*slot
	counts Counts
}

// Kind is what there is a template for, or can be.
type Kind struct {
	Pack pack.Pack
	Size sandbox.Size
	// Network says that the VMs have a network interface.
	Network bool
}

// slotKey names a kind.
type slotKey struct {
	pack    string
	size    sandbox.Size
	network bool
}

func (k Kind) slot() slotKey { return slotKey{k.Pack.Name, k.Size, k.Network} }

// slot is where there is a template, or will be.
type slot struct {
	template *template
	// job is the making of one that goes on, nil if none does.
	job *job
	// err is why the last one failed, and no other is begun before retry.
	err      error
	failures int
	retry    time.Time
	// suspect counts the restores that failed in a row.
	suspect int
}

// Limits of how long a template that could not be made is left alone, and of how
// many restores may fail before one is taken for bad.
const (
	minRetry    = 10 * time.Second
	maxRetry    = 10 * time.Minute
	maxSuspect  = 3
	lockName    = "lock"
	noTemplates = "there is no template of the pack in that size; `emberctl template build` makes one"
)

// Open makes templates in cfg.Dir available. Nobody else may use the directory.
// The caller closes it, once no VM runs.
func Open(ctx context.Context, cfg Config) (*Templates, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	unlock, err := lockfile.Take(filepath.Join(cfg.Dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	s := &Templates{
		cfg: cfg, unlock: unlock, slots: make(map[slotKey]*slot), turns: make(chan struct{}, cfg.Parallel),
		shells: firecracker.NewShells(ctx, cfg.Launcher, cfg.Shells, cfg.standBack, cfg.Log, cfg.Faults), swept: make(chan struct{}),
	}
	s.inputs = sync.OnceValues(s.hashInputs)
	s.ctx, s.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	s.wg.Go(func() {
		defer close(s.swept)
		if err := s.sweep(); err != nil {
			cfg.Log.Error("old templates were not removed", "err", err)
		}
	})
	return s, nil
}

// Close ends what goes on in the background and returns when it has ended.
func (s *Templates) Close() error {
	s.stop(sandbox.ErrClosing)
	s.wg.Wait()
	s.shells.Close()
	return s.unlock()
}

// Provision restores a VM. Where there is no template yet, and where a restore
// fails, the VM is booted instead.
func (s *Templates) Provision(ctx context.Context, req provision.Request) (*provision.VM, error) {
	switch req.BootPath {
	case sandbox.ColdBoot:
		return s.cfg.Cold.Provision(ctx, req)
	case sandbox.Pooled:
		return nil, sandbox.NoBootPath(req.BootPath, "this emberd keeps no microVMs ready")
	}
	if err := provision.CheckEgress(s.cfg.Networks, req.Egress); err != nil {
		return nil, err
	}
	// What is begun here is for the requests to come, and is not to slow this one.
	served := make(chan struct{})
	defer close(served)
	t := s.find(Kind{req.Pack, req.Limits.Size, req.Egress != nil}, served) //nolint:contextcheck // nor does it end with this one
	if t == nil {
		if req.BootPath == sandbox.Restored {
			return nil, sandbox.NoBootPath(req.BootPath, noTemplates)
		}
		return s.cfg.Cold.Provision(ctx, req)
	}
	vm, err := s.restore(ctx, t, req)
	switch {
	case err == nil:
		s.acquit(t)
		return vm, nil
	case ctx.Err() != nil:
		return nil, errors.Join(context.Cause(ctx), err)
	case errors.Is(err, sandbox.ErrEgress): // it would not be better with a boot
		return nil, err
	}
	s.suspect(t, err)
	if req.BootPath == sandbox.Restored {
		return nil, sandbox.ErrBoot.Because(err)
	}
	return s.cfg.Cold.Provision(ctx, req)
}

// errTooLong is a restored guest that does not answer.
var errTooLong = errors.New("the restore took too long")

// restore makes a VM out of a template.
func (s *Templates) restore(ctx context.Context, t *template, req provision.Request) (vm *provision.VM, err error) {
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := t.unchanged(); err != nil {
		return nil, &tamperedError{err}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.RestoreTimeout, errTooLong)
	defer cancel()
	pages := t.Armed
	if req.Ahead {
		pages = t.Rehearsed
	}
	ctx, span := trace.Start(ctx, "restore")
	defer func() { span.End(trace.Code(err)) }()
	err = s.shells.Use(ctx, req.Begin, func(shell *firecracker.Shell) error {
		nic := provision.NewInterface(s.cfg.Networks, shell.ID(), req.Egress)
		fc, err := shell.Restore(ctx, t.snapshot, firecracker.RestoreOptions{Written: pages, Attach: nic.Attach()}, s.cfg.Faults)
		if err != nil {
			return errors.Join(err, nic.Close())
		}
		host := provision.Host{Records: s.cfg.Records, Log: s.cfg.Log, Faults: s.cfg.Faults}
		vm, err = host.Ready(ctx, fc, provision.Identity{
			ID: shell.ID(), Pack: req.Pack, Limits: req.Limits, BootPath: sandbox.Restored, Interface: nic,
			Spare: req.Ahead,
		})
		return err
	})
	return vm, err
}

// tamperedError is what is wrong with a template's files.
type tamperedError struct{ error }

func (e *tamperedError) Unwrap() error { return e.error }

// find returns the template of a kind. If there is none it returns nil, and may
// have one made once after is closed.
func (s *Templates) find(k Kind, after <-chan struct{}) *template {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl := s.slot(k.slot())
	if sl.template == nil && sl.job == nil && k.Size == s.cfg.Size && time.Now().After(sl.retry) {
		s.begin(sl, k, after)
	}
	return sl.template
}

// slot returns the slot of k. The caller holds s.mu.
func (s *Templates) slot(k slotKey) *slot {
	sl := s.slots[k]
	if sl == nil {
		sl = &slot{}
		s.slots[k] = sl
	}
	return sl
}

// acquit notes that a VM was restored.
func (s *Templates) acquit(t *template) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.slots[t.slot()]; sl.template == t {
		sl.suspect = 0
	}
}

// suspect notes that no VM could be restored, and discards the template if that
// is its fault.
func (s *Templates) suspect(t *template, err error) {
	s.cfg.Log.Warn("restore failed", "pack", t.Pack, "template", t.Key.ID(), "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.FailedRestores++
	sl := s.slots[t.slot()]
	if sl.template != t {
		return
	}
	sl.suspect++
	if _, tampered := errors.AsType[*tamperedError](err); tampered || sl.suspect == maxSuspect {
		s.counts.Refused++
		s.cfg.Log.Error("template is discarded", "pack", t.Pack, "template", t.Key.ID(), "err", err)
		s.discard(sl)
	}
}

// discard takes a template out of use and off the disk. The caller holds s.mu.
func (s *Templates) discard(sl *slot) {
	dir := filepath.Dir(sl.template.snapshot.State)
	sl.template, sl.suspect = nil, 0
	if err := remove(dir); err != nil {
		s.cfg.Log.Error("template was not removed", "err", err)
	}
}
