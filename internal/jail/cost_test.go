package jail

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// The parts of a jail, in the order in which [BenchmarkCost] adds them.
const (
	partBare = iota
	partJailer
	partThread
	partCgroup
	partIO
	partNetwork
	partNamespaces
	partFiles
	partWhole
	parts
)

var partNames = [parts]string{
	partBare:       "Firecracker alone",
	partJailer:     "+ jailer: root directory, user, mount namespace, rlimits",
	partThread:     "+ reduced thread: umask, bounding set, no_new_privs",
	partCgroup:     "+ cgroup: memory, swap, CPU, processes",
	partIO:         "+ io.max",
	partNetwork:    "+ network namespace",
	partNamespaces: "+ process, IPC and host name namespaces",
	partFiles:      "+ links of kernel, initramfs and pack",
	partWhole:      "the product: + leased user id, plan, membership verified",
}

// cost is what one start and its end took.
type cost struct {
	start, end time.Duration
	// vmm and daemon are system calls until the API answers: those of the
	// process that was started, and those of this one.
	vmm, daemon uint64
	files       int
}

// BenchmarkCost measures what a VMM's start costs, up to its API's answer, and
// its end, with the parts of a jail added one after the other. Only the last
// row is made by the package; the others are put together here and exist
// nowhere else. The rows take turns, so that what else the host does hits all of
// them.
//
// Run it in the machine: -real -test.run '^$' -test.bench Cost -test.benchtime 1x
func BenchmarkCost(b *testing.B) {
	testenv.Real(b)
	const rounds = 40
	r := newRig(b)
	took := [parts][]cost{}
	for range rounds {
		for part := range parts {
			took[part] = append(took[part], r.measure(b, part))
		}
	}
	median := func(part int, of func(cost) float64) float64 {
		var all []float64
		for _, c := range took[part] {
			all = append(all, of(c))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	start := func(c cost) float64 { return c.start.Seconds() * 1000 }
	end := func(c cost) float64 { return c.end.Seconds() * 1000 }
	var table strings.Builder
	for part := range parts {
		s, e := median(part, start), median(part, end)
		fmt.Fprintf(&table, "| %s | %.1f | %.2f | %.1f | %.2f | %.0f | %.0f | %.0f |\n", partNames[part],
			s, s/median(partBare, start), e, e/median(partBare, end),
			median(part, func(c cost) float64 { return float64(c.vmm) }),
			median(part, func(c cost) float64 { return float64(c.daemon) }),
			median(part, func(c cost) float64 { return float64(c.files) }))
	}
	b.Logf("%d rounds; ms and ratio of start and end, system calls of VMM and daemon, files\n%s", rounds, &table)
	b.ReportMetric(median(partWhole, start)/median(partBare, start), "start-ratio")
	b.ReportMetric(median(partWhole, end)/median(partBare, end), "end-ratio")
	b.ReportMetric(0, "ns/op")
}

// rig is what the rows are made with.
type rig struct {
	j      *Jailer
	shared map[string]string // the files that VMs share
	next   int
	// The VMMs', and this process's.
	vmm, daemon syscallCounter
}

func newRig(b *testing.B) *rig {
	b.Helper()
	data := paths.Data(paths.DefaultData)
	dir, err := os.MkdirTemp(string(data), "test-") //nolint:usetesting // jails need the filesystem of the packs
	must(b, err)
	b.Cleanup(func() { must(b, os.RemoveAll(dir)) })
	j, err := Open(Config{
		Firecracker: data.Firecracker(), Jailer: data.Jailer(), Dir: filepath.Join(dir, "jail"),
		Users: DefaultUsers, UserLocks: filepath.Join(dir, "users"), Log: slog.New(slog.DiscardHandler),
	})
	must(b, err)
	b.Cleanup(func() { must(b, j.Close()) })
	initramfs := filepath.Join(dir, "initramfs")
	must(b, os.WriteFile(initramfs, nil, 0o600))
	r := &rig{j: j, shared: map[string]string{
		"kernel": data.Vmlinux(), "initrd": initramfs, "rootfs": data.PackRootfs("shell"),
	}}
	// What runs in the cgroup of all jails counts as a VMM's, and this process as
	// the daemon.
	r.vmm = count(b, j.cgroups.path(""))
	own := filepath.Join(cgroupRoot, "emberd-cost")
	must(b, os.Mkdir(own, 0o700))
	must(b, writeFile(filepath.Join(own, "cgroup.procs"), []byte("0")))
	b.Cleanup(func() {
		must(b, writeFile(filepath.Join(cgroupRoot, "cgroup.procs"), []byte("0")))
		must(b, os.Remove(own))
	})
	r.daemon = count(b, own)
	return r
}

// measure starts one VMM with the parts up to that one, and ends it.
func (r *rig) measure(b *testing.B, part int) (c cost) {
	b.Helper()
	r.next++
	id := sandbox.VMID(fmt.Sprintf("vm-%012d", r.next))
	vmm, daemon := r.vmm.read(b), r.daemon.read(b)
	began := time.Now()
	run := r.compose
	if part == partWhole {
		run = r.product
	}
	v := run(b, id, part)
	c.daemon = r.daemon.read(b) - daemon
	for {
		conn, err := net.Dial("unix", v.socket)
		if err == nil {
			must(b, conn.Close())
			break
		}
		if time.Since(began) > 20*time.Second {
			b.Fatalf("%s: no API: %v", partNames[part], err)
		}
		time.Sleep(500 * time.Microsecond)
	}
	c.start = time.Since(began)
	c.vmm = r.vmm.read(b) - vmm
	must(b, filepath.WalkDir(filepath.Dir(v.socket), func(string, fs.DirEntry, error) error { c.files++; return nil }))
	began = time.Now()
	v.end()
	c.end = time.Since(began)
	return c
}

// started is a VMM whose API is at socket.
type started struct {
	socket string
	end    func()
}

// product starts a VMM as emberd does.
func (r *rig) product(b *testing.B, id sandbox.VMID, _ int) started {
	b.Helper()
	p, err := r.j.Start(b.Context(), Spec{
		ID: id, Args: []string{"--api-sock", "/api.sock", "--level", "Warning"},
	})
	must(b, err)
	must(b, p.Equip(size, r.shared))
	return started{filepath.Join(p.Jail().Root, "api.sock"), func() { must(b, p.Kill(context.Background())) }}
}

// size is the smallest VM there is; none is ever started in these VMMs.
var size = sandbox.Size{VCPUs: 1, MemoryMiB: 128}

// compose starts a VMM with the parts up to that one.
func (r *rig) compose(b *testing.B, id sandbox.VMID, part int) started {
	b.Helper()
	name, user := string(id), strconv.Itoa(r.j.cfg.Users.First+r.j.cfg.Users.Count-1-r.next%1000)
	// In every row the process is in a cgroup, where its system calls are
	// counted. Up to that part it is one that limits nothing.
	limits := map[string]string{}
	if part >= partCgroup {
		maps.Copy(limits, map[string]string{
			"memory.max": "201326592", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "100000 100000", "pids.max": "33",
		})
	}
	if part >= partIO && r.j.disk != "" {
		limits["io.max"] = r.j.disk + " " + ioLimits
	}
	must(b, r.j.cgroups.create(name, limits))
	cgroup, err := os.Open(r.j.cgroups.path(name))
	must(b, err)
	defer func() { _ = cgroup.Close() }()

	dir := filepath.Join(r.j.cfg.Dir, r.j.execName(), name)
	root, socket := filepath.Join(dir, "root"), "/api.sock"
	must(b, os.MkdirAll(root, 0o700))
	var command []string
	if part >= partJailer {
		command = []string{
			r.j.cfg.Jailer, "--id", name, "--exec-file", r.j.cfg.Firecracker, "--uid", user, "--gid", user,
			"--chroot-base-dir", r.j.cfg.Dir, "--resource-limit", "no-file=256", "--resource-limit", "fsize=1048576", "--",
		}
	} else {
		command, socket = []string{r.j.cfg.Firecracker}, filepath.Join(root, socket)
	}
	if part >= partFiles {
		for file, source := range r.shared {
			must(b, os.Link(source, filepath.Join(root, file)))
		}
	}
	end := r.run(b, part, append(command, "--api-sock", socket, "--level", "Warning"), cgroup)
	return started{filepath.Join(root, "api.sock"), func() {
		end()
		must(b, r.j.cgroups.kill(context.Background(), name))
		must(b, os.RemoveAll(dir))
	}}
}

// run starts the command of a row, and returns what ends it.
func (r *rig) run(b *testing.B, part int, command []string, cgroup *os.File) (end func()) {
	b.Helper()
	console, sink, err := consolePipe()
	must(b, err)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = []string{}, sink, sink
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if part >= partNetwork {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if part >= partNamespaces {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	start := cmd.Start
	if part >= partThread {
		start = func() error { return startReduced(cmd) }
	}
	must(b, start())
	must(b, sink.Close())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, console)
		_, _ = console.Close(), cmd.Wait()
	}()
	return func() {
		must(b, cmd.Process.Kill())
		<-ended
	}
}

// syscallCounter counts the system calls that the processes of a cgroup make, on each
// CPU.
type syscallCounter []int

// count begins to count. It needs the tracepoint of the kernel's tracing file
// system, which it mounts for a moment.
func count(b *testing.B, cgroup string) syscallCounter {
	b.Helper()
	tracing := b.TempDir()
	must(b, unix.Mount("tracefs", tracing, "tracefs", 0, ""))
	defer func() { must(b, unix.Unmount(tracing, 0)) }()
	text, err := os.ReadFile(filepath.Join(tracing, "events", "raw_syscalls", "sys_enter", "id"))
	must(b, err)
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Size: uint32(unix.PERF_ATTR_SIZE_VER0)}
	_, err = fmt.Sscan(string(text), &attr.Config)
	must(b, err)
	dir, err := os.Open(cgroup)
	must(b, err)
	defer func() { _ = dir.Close() }()
	var c syscallCounter
	for cpu := 0; ; cpu++ {
		fd, err := unix.PerfEventOpen(&attr, int(dir.Fd()), cpu, -1, unix.PERF_FLAG_PID_CGROUP|unix.PERF_FLAG_FD_CLOEXEC)
		if cpu > 0 && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)) {
			return c // there are no more CPUs
		}
		must(b, err)
		b.Cleanup(func() { _ = unix.Close(fd) })
		c = append(c, fd)
	}
}

func (c syscallCounter) read(b *testing.B) (sum uint64) {
	b.Helper()
	for _, fd := range c {
		var n [8]byte
		_, err := unix.Read(fd, n[:])
		must(b, err)
		sum += binary.NativeEndian.Uint64(n[:])
	}
	return sum
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
