// Command emberd-init is PID 1 of every VM that emberd boots. It makes the
// system, answers the host over vsock, and collects the dead.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/boot"
	"github.com/emberd/emberd/internal/guest/identity"
	"github.com/emberd/emberd/internal/guest/machine"
	"github.com/emberd/emberd/internal/guest/proc"
	"github.com/emberd/emberd/internal/guest/reaper"
	"github.com/emberd/emberd/internal/guest/server"
	"github.com/emberd/emberd/internal/guest/warm"
	"github.com/emberd/emberd/internal/version"
	"github.com/emberd/emberd/internal/vsock"
)

// roleMachine is the role of the emulated KVM host; a sandbox has none.
const roleMachine = "machine"

const help = `emberd-init is PID 1 of every microVM: it makes the system, runs the programs that
emberd sends, and collects what they leave. The kernel of a microVM starts it;
there is nothing to start by hand. emberd finds it beside itself, or by --init.

Flags:
`

func main() {
	interpreter := flag.String("interpreter", "python3", "runs code when the kernel command line names no other")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Usage = func() {
		_, _ = fmt.Fprint(flag.CommandLine.Output(), help)
		flag.PrintDefaults()
	}
	flag.Parse()
	if *showVersion {
		fmt.Println(version.Version)
		return
	}
	if done, err := machine.Command(flag.Args()); done {
		if err != nil {
			fmt.Fprintln(os.Stderr, "emberd-init:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "emberd-init: only the kernel of a VM can start this program")
		os.Exit(2)
	}
	defer func() {
		if v := recover(); v != nil {
			boot.Halt(fmt.Errorf("panic: %v", v))
		}
	}()
	boot.Halt(run(*interpreter))
}

// run returns only when PID 1 cannot go on.
func run(interpreter string) error {
	params, err := boot.Run()
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, variable := range proc.DefaultEnv() {
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if params.Interpreter != "" {
		interpreter = params.Interpreter
	}

	ctx, cancel := context.WithCancel(context.Background())
	dead := reaper.NewInit()
	var reaping sync.WaitGroup
	reaping.Go(func() { dead.Run(ctx) })
	defer reaping.Wait()
	defer cancel()
	cfg := server.Config{
		Interpreter: proc.Interpreter{Path: interpreter, CodeFlag: params.CodeFlag, FileFlag: params.FileFlag},
		BuildID:     version.Version,
		Reaper:      dead,
		CgroupRoot:  boot.ProgramsCgroup,
	}
	if params.Role == roleMachine {
		return runMachine(ctx, server.New(cfg))
	}
	id := identity.New()
	if err := id.Prepare(); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	cfg.Arm, cfg.FilesFull = id.Take, boot.FilesFull
	if params.Warm != "" {
		if cfg.Recipe, err = warm.ParseRecipe(params.Warm, params.Watch); err != nil {
			return fmt.Errorf("command line: %w", err)
		}
	}
	if cfg.Memory, err = boot.KeptOutput(); err != nil {
		return err
	}
	// What is kept is not garbage, but would let as much garbage pile up.
	debug.SetMemoryLimit(int64(boot.ReservedMemory + cfg.Memory))
	agent := server.New(cfg)
	l, err := vsock.Listen(agentv1.Port)
	if err != nil {
		return err
	}
	if err := agent.Serve(ctx, l); err != nil {
		return err
	}
	return errors.New("the agent stopped serving")
}

// runMachine runs the emulated KVM host instead of a sandbox. It returns only
// with an error.
func runMachine(ctx context.Context, agent *server.Server) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := machine.Run(ctx, agent, log); err != nil {
		return err
	}
	return machine.PowerOff()
}
