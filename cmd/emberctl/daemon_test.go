package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/httpapi"
	"github.com/emberd/emberd/internal/sandbox"
)

// startDaemon starts a daemon that ends with the script, and returns its
// address.
func startDaemon(env *testscript.Env) (*hostEngine, string) {
	e := &hostEngine{live: map[sandbox.ID]sandbox.Sandbox{}}
	log := slog.New(slog.DiscardHandler)
	srv := httpapi.NewServer(httpapi.New(httpapi.Config{
		Engine: e,
		Info: func() rest.Info {
			return rest.Info{
				GuestRAMMiB: sandbox.DefaultSize.MemoryMiB, GuestVCPUs: sandbox.DefaultSize.VCPUs,
				BootPath: string(sandbox.ColdBoot), Packs: []string{"python", "shell"}, WorkDir: "/var/lib/emberd",
				KVM: "emulated", Versions: rest.Versions{Emberd: "dev", Firecracker: "1.12.1", HostKernel: "6.1.0"},
			}
		},
		Ready: func() error { return nil },
		Log:   log,
	}), log)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			panic(err)
		}
	})
	env.Defer(func() { _ = srv.Close(); serving.Wait() })
	return e, l.Addr().String()
}

// hostEngine is an engine whose sandboxes are nothing but names: it runs
// programs on the host. Pack "slow" is never ready, and pack "late" becomes
// ready at the moment when its client goes away.
type hostEngine struct {
	mu       sync.Mutex
	live     map[sandbox.ID]sandbox.Sandbox
	creating int
}

// counts returns how many sandboxes are running and being created.
func (e *hostEngine) counts() (running, creating int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.live), e.creating
}

func (e *hostEngine) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if !slices.Contains([]string{"python", "shell", "slow", "late"}, spec.Pack) {
		return sandbox.Sandbox{}, sandbox.UnknownPack(spec.Pack)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if spec.Pack == "slow" || spec.Pack == "late" {
		e.creating++
		e.mu.Unlock()
		<-ctx.Done()
		e.mu.Lock()
		e.creating--
		if spec.Pack == "slow" {
			return sandbox.Sandbox{}, ctx.Err()
		}
	}
	sb := sandbox.Sandbox{
		ID: sandbox.NewID(), Pack: spec.Pack, Size: sandbox.DefaultSize,
		State: sandbox.Running, BootPath: sandbox.ColdBoot, CreatedAt: time.Now(),
	}
	e.live[sb.ID] = sb
	return sb, nil
}

func (e *hostEngine) Exec(ctx context.Context, id sandbox.ID, req sandbox.ExecRequest) (sandbox.ExecResult, error) {
	sb, err := e.Get(id)
	if err != nil {
		return sandbox.ExecResult{}, err
	}
	limit := ctx
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		limit, cancel = context.WithTimeout(ctx, req.Timeout)
		defer cancel()
	}
	interpreter := map[string]string{"python": "python3", "shell": "sh"}[sb.Pack]
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(limit, interpreter, "-c", req.Code)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(req.Stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	began := time.Now()
	err = cmd.Run()
	res := sandbox.ExecResult{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Duration: time.Since(began)}
	switch {
	case ctx.Err() != nil:
		return sandbox.ExecResult{}, ctx.Err()
	case limit.Err() != nil:
		res.ExitCode, res.Err = -1, sandbox.ErrTextTimedOut
	case cmd.ProcessState == nil:
		res.ExitCode, res.Err = -1, err.Error()
	default:
		res.ExitCode = exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus))
	}
	return res, nil
}

func exitCode(ws syscall.WaitStatus) int {
	if sig := ws.Signal(); sig != -1 {
		return 128 + int(sig)
	}
	return ws.ExitStatus()
}

func (e *hostEngine) Delete(_ context.Context, id sandbox.ID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.live[id]; !ok {
		return sandbox.ErrNotFound
	}
	delete(e.live, id)
	return nil
}

func (e *hostEngine) Get(id sandbox.ID) (sandbox.Sandbox, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	sb, ok := e.live[id]
	if !ok {
		return sandbox.Sandbox{}, sandbox.ErrNotFound
	}
	return sb, nil
}

func (e *hostEngine) List() []sandbox.Sandbox {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]sandbox.Sandbox, 0, len(e.live))
	for _, sb := range e.live {
		all = append(all, sb)
	}
	slices.SortFunc(all, func(a, b sandbox.Sandbox) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all
}
