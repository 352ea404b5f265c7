// Package daemon puts emberd together: it is the one place that knows every
// part, and the parts know only what they are given.
//
// The whole daemon is a value. [New] makes it, with every check that can stop
// it from working; [Daemon.Run] serves until its context ends and leaves behind
// what it is told to. A daemon that was killed is one that left without a word:
// the next one goes on with its sandboxes. Tests run the real thing in their own
// process.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/audit"
	"github.com/emberd/emberd/internal/doctor"
	"github.com/emberd/emberd/internal/engine"
	"github.com/emberd/emberd/internal/firecracker"
	"github.com/emberd/emberd/internal/httpapi"
	"github.com/emberd/emberd/internal/jail"
	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/provision"
	"github.com/emberd/emberd/internal/provision/pool"
	"github.com/emberd/emberd/internal/provision/template"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/store"
	"github.com/emberd/emberd/internal/telemetry"
	"github.com/emberd/emberd/internal/telemetry/trace"
	"github.com/emberd/emberd/internal/version"
	"github.com/emberd/emberd/internal/x/cleanup"
)

// Daemon is emberd, ready to run.
type Daemon struct {
	cfg       Config
	log       *slog.Logger
	engine    *engine.Engine
	templates *template.Templates // nil if there are none
	telemetry *telemetry.Telemetry
	// firecracker is the release of it that runs, empty if something else does.
	firecracker string
	tracer      *trace.Exporter // nil if nobody traces
	vmms        *telemetry.VMMs // nil if VMMs are not in the jail
	api         *httpapi.API
	listeners   *listeners
	pool        *pool.Pool
	ready       chan struct{}
	// release gives back what New took: locks, listeners.
	release cleanup.Stack
}

// New checks everything a daemon needs and takes its locks and its listeners.
// The caller runs the daemon or closes it.
func New(ctx context.Context, cfg Config) (_ *Daemon, err error) {
	d := &Daemon{
		cfg: cfg, log: cfg.Log, ready: make(chan struct{}),
		telemetry: telemetry.New(prometheus.NewRegistry(), version.Version, nil),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.release.Unwind(ctx))
		}
	}()

	if err := cfg.check(); err != nil {
		return nil, err
	}
	if err := d.openTraces(); err != nil {
		return nil, err
	}
	// Before what `emberctl setup` would mend, which would be for nothing.
	kvm, err := checkKVM(cfg)
	if err != nil {
		return nil, err
	}
	records, err := store.Open(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	records.Faults = cfg.Faults
	d.release.Add("store", func(context.Context) error { return records.Close() })
	packs, err := pack.Load(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("%w; `emberctl setup` builds the packs", err)
	}
	kept, capacity, err := planPool(cfg, packs)
	if err != nil {
		return nil, err
	}
	info := describe(cfg, packs, kept, kvm)
	launcher := cfg.Launcher
	if launcher == nil {
		if launcher, err = d.openJail(ctx, &info); err != nil {
			return nil, err
		}
	}
	if err := prepareGuests(cfg); err != nil {
		return nil, err
	}
	policies, networks, err := d.openNetworks()
	if err != nil {
		return nil, err
	}
	adopter := provision.Adopter{
		Host: provision.Host{Records: records, Log: cfg.Log, Faults: cfg.Faults}, VMMs: launcher,
		Networks: networks, Before: launcher.Left(),
	}
	foreground := provision.NewForeground(runtime.NumCPU())
	source, err := d.openTemplates(ctx, launcher, packs, records, networks, foreground, info.Versions.Firecracker)
	if err != nil {
		return nil, err
	}
	audited, err := d.openAudit()
	if err != nil {
		return nil, err
	}
	d.openPool(source, kept, foreground)
	d.engine, err = engine.New(engine.Config{
		Packs: packs, Provisioner: d.pool, Store: records, Limits: cfg.Limits, Capacity: capacity, OnceKeys: cfg.OnceKeys,
		Foreground: foreground, Adopter: adopter, Spares: d.pool, Events: d.telemetry, Egress: policies, Audit: audited,
		Log: cfg.Log, Faults: cfg.Faults,
	})
	if err != nil {
		return nil, err
	}
	d.release.Add("engine", d.endSandboxes)
	d.telemetry.Watch(d.sources(d.pool))
	d.api = d.newAPI(info, packs)
	if d.listeners, err = listen(ctx, cfg); err != nil {
		return nil, err
	}
	d.release.Add("listeners", func(context.Context) error { return d.listeners.Close() })
	return d, nil
}

// prepareGuests makes what guests begin with, and checks the rest.
func prepareGuests(cfg Config) error {
	if err := kernel.CheckVmlinux(cfg.DataDir.Vmlinux()); err != nil {
		return fmt.Errorf("%w; `emberctl setup` installs it", err)
	}
	initrd := cfg.DataDir.GuestInitramfs()
	if err := kernel.BuildInitramfs(initrd, cfg.Init, cfg.DataDir.GuestModules(), kernel.GuestModules()); err != nil {
		return fmt.Errorf("guest initramfs: %w", err)
	}
	return nil
}

// openAudit opens the file of what sandboxes may reach, and were refused to.
func (d *Daemon) openAudit() (*audit.Log, error) {
	l, err := audit.Open(d.cfg.DataDir.Audit())
	if err == nil {
		d.release.Add("audit", func(context.Context) error { return l.Close() })
	}
	return l, err
}

// newAPI returns the API of the daemon, which says info of itself.
func (d *Daemon) newAPI(info rest.Info, packs *pack.Registry) *httpapi.API {
	var templates httpapi.Templates // nil, not a nil of another type
	if d.templates != nil {
		templates = templateAPI{d.templates, packs}
	}
	return httpapi.New(httpapi.Config{
		Engine: d.engine, Templates: templates, Telemetry: d.telemetry, Tracer: d.tracer, Stats: d.stats, Log: d.log,
		Info: func() rest.Info {
			now := info
			now.Pool, now.Egress = describePool(d.pool), d.engine.HasEgress()
			return now
		},
		Limits: d.cfg.Limits,
		Rate:   d.cfg.RequestRate,
		Ready:  d.engine.Ready,
	})
}

// describe returns what there is to say about a daemon before it runs.
func describe(cfg Config, packs *pack.Registry, kept []pool.Stock, kvm string) rest.Info {
	fastest := sandbox.ColdBoot
	switch {
	case len(kept) > 0:
		fastest = sandbox.Pooled
	case cfg.Templates:
		fastest = sandbox.Restored
	}
	return rest.Info{
		GuestRAMMiB: cfg.Limits.Default.MemoryMiB, GuestVCPUs: cfg.Limits.Default.VCPUs,
		KVM: kvm, BootPath: string(fastest), Packs: packs.Names(), WorkDir: string(cfg.DataDir),
		Versions: rest.Versions{Emberd: version.Version, HostKernel: hostKernel()},
	}
}

// checkKVM returns what microVMs will run on.
func checkKVM(cfg Config) (string, error) {
	if cfg.Launcher != nil {
		return "emulated", nil // of a launcher that is not the jail no better is known
	}
	host := doctor.HostKVM()
	if !host.Usable {
		return "", fmt.Errorf("%s; `emberctl machine start` runs emberd where it has KVM", host.Reason)
	}
	return host.String(), nil
}

// openJail prepares the jail for Firecracker and notes in info what VMs run on.
func (d *Daemon) openJail(ctx context.Context, info *rest.Info) (Launcher, error) {
	v, err := firecracker.CheckVersions(ctx, d.cfg.DataDir.Firecracker(), d.cfg.DataDir.Jailer())
	if err != nil {
		return nil, err
	}
	d.firecracker, info.Versions.Firecracker = v, v
	j, err := jail.Open(jail.Config{
		Firecracker: d.cfg.DataDir.Firecracker(), Jailer: d.cfg.DataDir.Jailer(),
		Dir: d.cfg.DataDir.Jails(), Users: d.cfg.Users, UserLocks: paths.UserLocks,
		Log: d.log, Faults: d.cfg.Faults,
	})
	if err != nil {
		return nil, err
	}
	d.release.Add("jail", func(context.Context) error { return j.Close() })
	d.vmms = telemetry.NewVMMs(os.DirFS("/"), j.Cgroup())
	return jailed{j}, nil
}

// jailed is the jail as a [Launcher].
type jailed struct{ *jail.Jailer }

func (l jailed) Launch(ctx context.Context, spec firecracker.LaunchSpec) (firecracker.Process, error) {
	p, err := l.Start(ctx, jail.Spec(spec))
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (l jailed) Adopt(id sandbox.VMID, handle []byte) (firecracker.Process, error) {
	p, err := l.Jailer.Adopt(id, handle)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Addr is where the API is served: over TCP, or else on the Unix socket, as a
// client takes it.
func (d *Daemon) Addr() string { return d.listeners.addrs()[0] }

// Engine is what the API is served from, for callers in the same process whose
// requests do not fit one.
func (d *Daemon) Engine() *engine.Engine { return d.engine }

// Ready is closed when the daemon has gone on with what an earlier one left, and
// creates sandboxes.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// Run serves the API until ctx ends, then ends every sandbox, or lets go of it,
// and gives back what New took. It returns nil after an orderly end.
func (d *Daemon) Run(ctx context.Context) error {
	d.log.Info("emberd listens", "addrs", d.listeners.addrs(), "data_dir", d.cfg.DataDir, "version", version.Version)
	var starting sync.WaitGroup
	quiet := func() {}
	starting.Go(func() { quiet = d.start(ctx) })
	defer func() { quiet() }()
	err := d.listeners.serve(ctx, d.api, func() error {
		d.log.Info("emberd is shutting down", "on_exit", string(d.cfg.OnExit))
		d.tellStopping()
		starting.Wait()
		// The requests that wait for the sandboxes get their answer, and those that
		// follow events hear of the last ones.
		defer d.telemetry.Close()
		return d.endSandboxes(ctx)
	})
	return errors.Join(err, d.Close(ctx))
}

// start goes on with what an earlier daemon left. The API is served meanwhile,
// and asks clients to wait. It returns what ends the signs of life.
func (d *Daemon) start(ctx context.Context) (quiet func()) {
	d.engine.Recover(ctx)
	if ctx.Err() != nil {
		return func() {}
	}
	d.pool.Start()
	close(d.ready)
	d.log.Info("emberd is ready", "addrs", d.listeners.addrs())
	quiet = d.tellReady(ctx)
	if d.firecracker != "" {
		d.checkHost(ctx)
	}
	return quiet
}

// endSandboxes ends the sandboxes, or lets go of them, as the daemon was told.
func (d *Daemon) endSandboxes(ctx context.Context) error {
	if d.cfg.OnExit == Keep {
		d.engine.Leave(ctx)
		return nil
	}
	return d.engine.Close(ctx)
}

// Close gives back what New took. It is for a daemon that is not run.
func (d *Daemon) Close(ctx context.Context) error { return d.release.Unwind(ctx) }

// hostKernel is the release of the kernel that runs emberd.
func hostKernel() string {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return ""
	}
	return unix.ByteSliceToString(uts.Release[:])
}
