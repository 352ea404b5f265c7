package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/fault"
)

// Fault points of [Launch].
const (
	FaultLaunch = "firecracker.launch"
	FaultAPI    = "firecracker.api"
)

// Shell is a VMM in its jail that answers its API and has no VM yet. It becomes
// one VM, once, whatever its size: what depends on the VM is placed in the jail
// when that is chosen.
type Shell struct {
	id      sandbox.VMID
	process Process
	api     *apiClient
}

// Launch starts a VMM and returns when its API answers. fileMiB is the size of
// the largest file it has to write, as in [LaunchSpec].
func Launch(ctx context.Context, l Launcher, id sandbox.VMID, fileMiB int, faults *fault.Set) (_ *Shell, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = joinUndo(err, undo.Unwind(ctx))
		}
	}()
	if err := faults.Hit(FaultLaunch); err != nil {
		return nil, err
	}
	process, err := l.Launch(ctx, LaunchSpec{
		ID:      id,
		FileMiB: fileMiB,
		// At a lower level Firecracker logs each request, which would drive the
		// guest's last words out of the console's tail.
		Args: []string{"--api-sock", "/" + apiSocket, "--level", "Warning"},
	})
	if err != nil {
		return nil, fmt.Errorf("launch VMM: %w", err)
	}
	s := &Shell{id: id, process: process}
	s.api = newAPIClient(func(ctx context.Context) (net.Conn, error) { return process.Dial(ctx, apiSocket) })
	undo.Add(FaultLaunch, s.Kill)
	if err := faults.Hit(FaultAPI); err != nil {
		return nil, err
	}
	if err := s.api.waitReady(ctx, process.Done()); err != nil {
		return nil, fmt.Errorf("launch VMM: API socket: %w\nconsole: %s", err, lastWords(process))
	}
	undo.Release()
	return s, nil
}

// ID names the microVM that the shell is going to be.
func (s *Shell) ID() sandbox.VMID { return s.id }

// Done is closed when the VMM has ended.
func (s *Shell) Done() <-chan struct{} { return s.process.Done() }

// Kill ends the VMM and removes everything that was made for it. It may be
// called again.
func (s *Shell) Kill(ctx context.Context) error {
	s.api.close()
	return s.process.Kill(ctx)
}

// step is one on the way to a VM.
type step struct {
	fault string
	do    func(context.Context, *apiClient) error
}

// call is a step that is one API call.
func call(fault, method, path string, body any) step {
	return step{fault, func(ctx context.Context, api *apiClient) error { return api.call(ctx, method, path, body) }}
}

// become carries out the steps that turn the shell into a VM. On error nothing
// is left of it.
func (s *Shell) become(ctx context.Context, size sandbox.Size, files map[string]string, steps []step, faults *fault.Set) (_ *VM, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\nconsole: %s", err, lastWords(s.process))
			err = joinUndo(err, s.Kill(ctx))
		}
	}()
	defer s.api.close()
	if err := errors.Join(faults.Hit(FaultEquip), s.process.Equip(size, files)); err != nil {
		return nil, err
	}
	for _, step := range steps {
		if err := faults.Hit(step.fault); err != nil {
			return nil, err
		}
		if err := step.do(ctx, s.api); err != nil {
			return nil, err
		}
	}
	// Firecracker has put up its last seccomp filter when it answers the last
	// step. One that was built without filters, or could not put them up, must
	// not be handed over.
	if err := errors.Join(faults.Hit(FaultConfine), s.process.CheckConfined()); err != nil {
		return nil, fmt.Errorf("VMM is not confined: %w", err)
	}
	return &VM{process: s.process}, nil
}

func joinUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	return fmt.Errorf("%w (and %w)", err, undo)
}
