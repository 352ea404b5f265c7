package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/jail"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
)

// DefaultListen is where the API is served when nothing else is said: on this
// host only.
const DefaultListen = "127.0.0.1:7777"

// DefaultBootTimeout is ample for a microVM under emulation and a hundred times
// what one needs on real hardware.
const DefaultBootTimeout = 40 * time.Second

// Config is everything a daemon can be told. [NewConfig] has the defaults.
type Config struct {
	Listen  string
	DataDir paths.Data
	RunDir  paths.Run
	// Init is the emberd-init executable that becomes PID 1 of every guest.
	Init string
	// Limits are what each sandbox is granted, and Capacity what all of them
	// are together.
	Limits   sandbox.Policy
	Capacity engine.Capacity
	// BootTimeout bounds the boot of one microVM.
	BootTimeout time.Duration
	// ParallelBoots is how many microVMs boot at a time.
	ParallelBoots int
	// Users are the user and group ids that VMMs are given.
	Users jail.IDRange

	Log *slog.Logger
	// Launcher starts VMMs; nil means the jail.
	Launcher firecracker.Launcher
	Faults   *fault.Set
}

// NewConfig returns the configuration of a daemon that was told nothing.
func NewConfig() Config {
	return Config{
		Listen:        DefaultListen,
		DataDir:       paths.DefaultData,
		RunDir:        paths.DefaultRun,
		Init:          besideExecutable("emberd-init"),
		Limits:        sandbox.DefaultPolicy(),
		Capacity:      defaultCapacity(),
		BootTimeout:   DefaultBootTimeout,
		ParallelBoots: max(2, runtime.NumCPU()),
		Users:         jail.DefaultUsers,
		Log:           slog.New(slog.DiscardHandler),
	}
}

// What a daemon that was told nothing promises its sandboxes together: all of
// the host's memory but what the host itself needs, and each of its CPUs many
// times over, as most sandboxes wait most of the time.
const (
	defaultSandboxes = 1000
	hostReserveMiB   = 512
	vcpusPerCPU      = 32
)

func defaultCapacity() engine.Capacity {
	c := engine.Capacity{Sandboxes: defaultSandboxes, VCPUs: vcpusPerCPU * runtime.NumCPU()}
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err == nil {
		c.MemoryMiB = max(0, int(host.Totalram*uint64(host.Unit)>>20)-hostReserveMiB)
	}
	return c
}

// besideExecutable is the path of a program that is installed with this one.
func besideExecutable(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	return filepath.Join(filepath.Dir(self), name)
}
