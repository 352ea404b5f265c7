package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

const cgroupFS = "/sys/fs/cgroup"

func hostOf(info rest.Info, pack string) Host {
	h := Host{
		CPUs: runtime.NumCPU(), KVM: info.KVM, Pack: pack,
		Emberd: info.Versions.Emberd, Firecracker: info.Versions.Firecracker, Kernel: info.Versions.HostKernel,
		CPU: field("/proc/cpuinfo", "model name"),
	}
	if kib, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		h.MemoryMiB = kib >> 10
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		h.Load = strings.TrimSpace(string(load))
	}
	return h
}

// field returns what a file of "name: value" lines says of name.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// trace is what a sandbox has on the host: a process, a cgroup and a root
// directory.
type trace struct{ paths []string }

// traceOf asks where the traces of a sandbox are. It is an error when they cannot
// be seen from here.
func traceOf(ctx context.Context, c *client.Client, id string) (trace, error) {
	in, err := c.Inspect(ctx, id)
	if err != nil {
		return trace{}, err
	}
	t := trace{paths: []string{
		fmt.Sprintf("/proc/%d/root", in.Jail.PID), filepath.Join(cgroupFS, in.Jail.Cgroup), in.Jail.Root,
	}}
	for _, path := range t.paths {
		if _, err := os.Lstat(path); err != nil {
			return trace{}, fmt.Errorf("the daemon is not on this host, or the caller is not root: %w", err)
		}
	}
	return t, nil
}

// goneTime is how long the traces of a deleted sandbox may stay.
const goneTime = 10 * time.Second

// awaitGone returns when nothing of a deleted sandbox is left.
func (t trace) awaitGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, goneTime)
	defer cancel()
	for {
		left := slices.IndexFunc(t.paths, func(path string) bool {
			_, err := os.Lstat(path)
			return !errors.Is(err, fs.ErrNotExist)
		})
		if left < 0 {
			return nil
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("%s is still there: %w", t.paths[left], err)
		}
	}
}

// settled looks around until two looks a second apart see the same: a daemon that
// has just begun is still making things ready.
func (b *run) settled(ctx context.Context) (map[string]int, error) {
	seen, err := b.lookAround(ctx)
	for range 20 {
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, time.Second); err != nil {
			return nil, err
		}
		before := seen
		if seen, err = b.lookAround(ctx); err == nil && maps.Equal(seen, before) {
			break
		}
	}
	return seen, err
}

// daemonRSS is the resident memory of the emberd on this host in MiB, 0 if there
// is none.
func daemonRSS() float64 {
	kib := 0
	for _, dir := range processes()["emberd"] {
		n, _ := strconv.Atoi(strings.TrimSuffix(field(filepath.Join(dir, "status"), "VmRSS"), " kB"))
		kib += n
	}
	return round(float64(kib) / 1024)
}

// processes are the directories in /proc of all processes, by what they are called.
func processes() map[string][]string {
	dirs := map[string][]string{}
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range comms {
		if name, err := os.ReadFile(path); err == nil {
			comm := strings.TrimSpace(string(name))
			dirs[comm] = append(dirs[comm], filepath.Dir(path))
		}
	}
	return dirs
}

const openFiles = "open files of emberd"

// lookAround counts the sandboxes and what they have on this host, by kind.
func (b *run) lookAround(ctx context.Context) (map[string]int, error) {
	all, err := b.Client.List(ctx)
	if err != nil {
		return nil, err
	}
	stock, err := b.Client.Pool(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[string]int{"sandboxes": len(all)}
	running := processes()
	for _, name := range []string{"firecracker", "jailer"} {
		seen["processes called "+name] = len(running[name])
	}
	for _, dir := range running["emberd"] {
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		seen[openFiles] += len(fds)
	}
	for _, tree := range []struct{ what, pattern string }{
		{"cgroups", cgroupFS + "/emberd-*/*/cgroup.procs"},
		{"records", "/run/emberd/sandboxes/*.json"},
	} {
		found, _ := filepath.Glob(tree.pattern)
		seen[tree.what] += len(found)
	}
	// The pool may keep more after a run than before. Each of its microVMs has a
	// process and a cgroup, and some files open.
	for _, p := range stock {
		seen["processes called firecracker"] -= p.Ready
		seen["cgroups"] -= p.Ready
		seen[openFiles] -= p.Ready * filesEach
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	seen["mounts"] = strings.Count(string(mounts), "\n")
	return seen, nil
}

// filesEach is how many files emberd has open for a microVM: its console, its
// process, its connection.
const filesEach = 3

// slack is how many more open files are no leak: connections of this client.
const slack = 4

// left names what is there now and was not before, once the deletes that were
// answered are through.
func (b *run) left(ctx context.Context, before map[string]int) ([]string, error) {
	deadline := time.Now().Add(goneTime)
	for {
		now, err := b.lookAround(ctx)
		if err != nil {
			return nil, err
		}
		left := []string{}
		for _, what := range slices.Sorted(maps.Keys(now)) {
			if now[what] > before[what]+slackOf(what) {
				left = append(left, fmt.Sprintf("%s: %d, %d before", what, now[what], before[what]))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func slackOf(what string) int {
	if what == openFiles {
		return slack
	}
	return 0
}
