package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/egress"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/jail"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/fault"
	"github.com/emberd/emberd/internal/x/systemd"
)

// DefaultListen is where the API is served when nothing else is said: on this
// host only.
const DefaultListen = "127.0.0.1:7777"

// DefaultBootTimeout is ample for a microVM under emulation and a hundred times
// what one needs on real hardware.
const DefaultBootTimeout = time.Minute

// Config is everything a daemon can be told. [NewConfig] has the defaults.
type Config struct {
	// Listen is the address to serve the API on, Socket the path of the Unix
	// socket to serve it on. Either is left out when it is empty.
	Listen, Socket string
	// SocketUIDs are the users who may use the socket, besides root and the
	// daemon's own.
	SocketUIDs []uint
	// AllowHosts are Host headers that clients of Listen may send, besides its
	// own names.
	AllowHosts []string
	// TLS is what the API at Listen is served with, if anything.
	TLS TLSFiles
	// Insecure lets Listen be an address that other hosts can reach without
	// keys or TLS.
	Insecure bool

	DataDir paths.Data
	RunDir  paths.Run
	// Init is the emberd-init executable that becomes PID 1 of every guest.
	Init string
	// Limits are what each sandbox is granted, and Capacity what all of them
	// are together.
	Limits   sandbox.Policy
	Capacity engine.Capacity
	// Egress is what sandboxes can be allowed to reach.
	Egress Egress
	// RequestRate is how many requests a second may come with one API key, 0 for any
	// number, and OnceKeys how many creates with an Idempotency-Key are remembered.
	RequestRate, OnceKeys int
	// Pool is how many microVMs of each pack are kept ready. Their memory is set
	// aside from the capacity.
	Pool map[string]pool.Bounds
	// Users are the user and group ids that VMMs are given.
	Users jail.IDRange
	// BootTimeout bounds the boot of one microVM.
	BootTimeout time.Duration
	// ParallelBoots is how many microVMs boot, or are restored, at a time.
	ParallelBoots int
	// Templates says that microVMs are restored from templates where there are
	// any, and Shells how many VMMs are kept ready for that.
	Templates bool
	Shells    int
	// OnExit is what becomes of the sandboxes when the daemon ends.
	OnExit OnExit

	// TraceEndpoint is the URL of a collector of OpenTelemetry that is sent traces;
	// empty is none.
	TraceEndpoint string

	Log *slog.Logger
	// Manager is the service manager that started the daemon; nil if none did.
	Manager *systemd.Manager
	// Launcher starts VMMs; nil means the jail.
	Launcher Launcher
	// Networks gives microVMs network interfaces; nil is those of this host.
	Networks provision.Networks
	Faults   *fault.Set
}

// check returns an error if no daemon can be like that.
func (c Config) check() error {
	err := errors.Join(c.Limits.Check(), c.Egress.Check())
	if c.RequestRate < 0 || c.OnceKeys < 0 {
		err = errors.Join(err, errors.New("neither the rate of requests nor the number of keys can be negative"))
	}
	return err
}

// Launcher starts VMMs and finds them again.
type Launcher interface {
	firecracker.Launcher
	firecracker.Adopter
}

// Egress is what the sandboxes of a daemon can be allowed to reach.
type Egress struct {
	// On says that a sandbox can have a network interface.
	On bool
	// Ranges are addresses that a policy may allow though they are not public.
	Ranges egress.Ranges
	// DNS are the resolvers that are asked; none are those of the host.
	DNS []netip.AddrPort
	// IPv6 says that IPv6 addresses may be reached.
	IPv6 bool
	// Limits has the rate and the total of a policy that asks for none, which are
	// the most that one may ask for. It allows nothing.
	Limits sandbox.Egress
}

// Check returns an error if no sandbox could have e.
func (e Egress) Check() error {
	for name, value := range map[string]int{"egress-rate-kib-s": e.Limits.RateKiBps, "egress-total-mib": e.Limits.TotalMiB} {
		if value == 0 {
			return fmt.Errorf("%s is 0; nothing is unlimited", name)
		}
	}
	return egress.CheckLimits(e.Limits)
}

// OnExit is what becomes of the sandboxes when a daemon is asked to end.
type OnExit string

// What can become of them: they go on, and the next daemon with them, or they
// end too.
const (
	Keep OnExit = "keep"
	Stop OnExit = "stop"
)

// UnmarshalText takes "keep" and "stop".
func (o *OnExit) UnmarshalText(text []byte) error {
	switch v := OnExit(text); v {
	case Keep, Stop:
		*o = v
		return nil
	}
	return fmt.Errorf("%q is neither %q nor %q", text, Keep, Stop)
}

// MarshalText returns what [OnExit.UnmarshalText] takes.
func (o OnExit) MarshalText() ([]byte, error) { return []byte(o), nil }

// TLSFiles are the PEM files of a certificate chain and its private key.
type TLSFiles struct{ Cert, Key string }

// NewConfig returns the configuration of a daemon that was told nothing. It has
// no socket, as the place for one depends on the run directory, and no pool:
// [DefaultPool] depends on what is installed.
func NewConfig() Config {
	return Config{
		Listen:        DefaultListen,
		DataDir:       paths.DefaultData,
		RunDir:        paths.DefaultRun,
		Init:          besideExecutable("emberd-init"),
		Limits:        sandbox.DefaultPolicy(),
		Capacity:      defaultCapacity(),
		Egress:        Egress{On: true, Limits: sandbox.Egress{RateKiBps: defaultRateKiBps, TotalMiB: defaultTotalMiB}},
		RequestRate:   defaultRequestRate,
		OnceKeys:      defaultOnceKeys,
		Users:         jail.DefaultUsers,
		BootTimeout:   DefaultBootTimeout,
		ParallelBoots: max(2, runtime.NumCPU()),
		Templates:     true,
		Shells:        2,
		OnExit:        Keep,
		Log:           slog.New(slog.DiscardHandler),
	}
}

// What goes through the interface of a sandbox at most if the daemon was told
// nothing: a gigabit a second, and more than an hour's work needs.
const (
	defaultRateKiBps = 128 << 10
	defaultTotalMiB  = 64 << 10
)

// defaultRequestRate is more than a client that waits for answers can send, so that
// one that runs wild is slowed down. defaultOnceKeys take 4 KiB of the run directory
// each when their sandboxes are gone.
const (
	defaultRequestRate = 1000
	defaultOnceKeys    = 10_000
)

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
