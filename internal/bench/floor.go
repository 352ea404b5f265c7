package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/agent"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/vsock"
	"github.com/emberd/emberd/internal/x/cleanup"
)

// agentPort is the vsock port the guest's agent listens on.
const agentPort = 1024

// TemplateOf finds a template of the pack in the default size, and returns its
// snapshot.
func TemplateOf(data paths.Data, pack string) (firecracker.Snapshot, error) {
	manifests, err := filepath.Glob(filepath.Join(data.Templates(), "*", "manifest.json"))
	if err != nil {
		return firecracker.Snapshot{}, err
	}
	for _, path := range manifests {
		var m struct {
			Pack string `json:"pack"`
			Key  struct {
				Size sandbox.Size `json:"size"`
			} `json:"key"`
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil {
			return firecracker.Snapshot{}, err
		}
		if m.Pack == pack && m.Key.Size == sandbox.DefaultSize {
			return firecracker.SnapshotIn(filepath.Dir(path), m.Key.Size, data.PackRootfs(pack)), nil
		}
	}
	return firecracker.Snapshot{}, fmt.Errorf("there is no template of %s in %s", pack, data.Templates())
}

// Floor measures n restores of snap by Firecracker alone: start, load and resume,
// first answer of the guest. There is no daemon, no jail and no cgroup; only this
// program's own code that speaks to Firecracker is the same. dir must be on the
// filesystem of the snapshot and be its owner's alone. It needs root, and no code
// but the template's own runs in the VMs.
func Floor(ctx context.Context, executable, dir string, snap firecracker.Snapshot, n int) ([]time.Duration, error) {
	var took []time.Duration
	for range n {
		t, err := bareRestore(ctx, executable, dir, snap)
		if err != nil {
			return nil, fmt.Errorf("restore by Firecracker alone: %w", err)
		}
		took = append(took, t)
	}
	return took, nil
}

func bareRestore(ctx context.Context, executable, dir string, snap firecracker.Snapshot) (took time.Duration, err error) {
	root, err := os.MkdirTemp(dir, "bench-*")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	if err := errors.Join(
		os.Link(executable, filepath.Join(root, "firecracker")),
		os.Mkdir(filepath.Join(root, "dev"), 0o700),
		device(root, "/dev/kvm"), device(root, "/dev/urandom"), device(root, "/dev/userfaultfd"),
	); err != nil {
		return 0, err
	}
	began := time.Now()
	shell, err := firecracker.Launch(ctx, bareLauncher{root}, sandbox.NewVMID(), 0, nil)
	if err != nil {
		return 0, err
	}
	vm, err := shell.Restore(ctx, snap, firecracker.RestoreOptions{}, nil)
	if err != nil {
		return 0, errors.Join(err, shell.Kill(ctx))
	}
	defer func() { err = errors.Join(err, vm.Kill(ctx)) }()
	session, err := greet(ctx, vm)
	if err != nil {
		return 0, err
	}
	took = time.Since(began)
	return took, session.Close()
}

// greet waits for the guest's first answer.
func greet(ctx context.Context, vm *firecracker.VM) (*agent.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, goneTime)
	defer cancel()
	for {
		conn, err := vm.Dial(ctx, agentPort)
		if err == nil {
			session, err := agent.Open(ctx, conn, slog.New(slog.DiscardHandler))
			if err == nil {
				return session, nil
			}
		} else if !errors.Is(err, vsock.ErrRefused) && ctx.Err() != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// device makes the device path in root as it is on the host, if there is one.
func device(root, path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil // Firecracker says so if it needs it
	}
	return unix.Mknod(filepath.Join(root, path), unix.S_IFCHR|0o600, int(st.Rdev))
}

// bareLauncher starts Firecracker with another root directory and nothing else
// around it.
type bareLauncher struct{ root string }

func (l bareLauncher) Launch(_ context.Context, spec firecracker.LaunchSpec) (firecracker.Process, error) {
	cmd := exec.Command("/firecracker", spec.Args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: l.root, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &bareProcess{root: l.root, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait()
	}()
	return p, nil
}

type bareProcess struct {
	root string
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *bareProcess) Dial(ctx context.Context, name string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(p.root, name))
}

func (p *bareProcess) Equip(_ sandbox.Size, files map[string]string) error {
	for name, source := range files {
		if err := os.Link(source, filepath.Join(p.root, name)); err != nil {
			return err
		}
	}
	return nil
}

func (p *bareProcess) Take(context.Context, map[string]string) error { return errors.ErrUnsupported }
func (p *bareProcess) CheckConfined() error                          { return nil }
func (p *bareProcess) Handle() ([]byte, error)                       { return nil, errors.ErrUnsupported }
func (p *bareProcess) Leave()                                        {}
func (p *bareProcess) Jail() sandbox.Jail                            { return sandbox.Jail{} }
func (p *bareProcess) Done() <-chan struct{}                         { return p.done }
func (p *bareProcess) OOMKilled() bool                               { return false }
func (p *bareProcess) Console() string                               { return "" }

func (p *bareProcess) Kill(ctx context.Context) error {
	ctx, cancel := cleanup.Context(ctx)
	defer cancel()
	_ = p.cmd.Process.Kill() // it may be gone
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("VMM (pid %d) does not end: %w", p.cmd.Process.Pid, context.Cause(ctx))
	}
}
