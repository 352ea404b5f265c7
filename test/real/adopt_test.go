package real

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

// plain has a daemon boot every microVM and keep none ready.
var plain = []string{"--templates=false", "--pool", "python=0", "--default-memory", "128", "--boot-timeout", "3m"}

// small is where a test of daemons that are killed works: directories of its own,
// searched for leftovers when the last daemon has ended.
func small(t *testing.T) (data paths.Data, run string) {
	t.Helper()
	testenv.Real(t)
	before := takeState(t)
	t.Cleanup(func() { checkState(t, before) })
	data, run = linkData(t), t.TempDir()
	t.Cleanup(func() { // after the last daemon's
		if t.Failed() { // which may have been told to keep its sandboxes
			startEmberd(t, data, run, plain...).end(t, syscall.SIGTERM)
		}
		for _, dir := range []string{filepath.Join(data.Jails(), "firecracker"), paths.Run(run).Sandboxes(), paths.Run(run).VMs()} {
			entries, err := os.ReadDir(dir)
			if err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
			for _, e := range entries {
				t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
			}
		}
	})
	return data, run
}

func (d *emberd) create(t *testing.T) string {
	t.Helper()
	id, err := d.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (d *emberd) sh(t *testing.T, id, code string) string {
	t.Helper()
	res, err := d.Exec(t.Context(), id, client.Program{Code: code})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%s: %q %q, status %d, %v", code, res.Stdout, res.Stderr, res.ExitCode, err)
	}
	return strings.TrimSpace(string(res.Stdout))
}

func (d *emberd) pid(t *testing.T, id string) int {
	t.Helper()
	in, err := d.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return in.Jail.PID
}

func (d *emberd) sandboxes(t *testing.T) map[string]time.Time {
	t.Helper()
	list, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]time.Time)
	for _, sb := range list {
		all[sb.ID] = sb.ExpiresAt
	}
	return all
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A daemon that is killed, and the one after it that is asked to end, leave four
// sandboxes whose guests notice nothing: they run on, with the program that
// counts in each of them, and keep their ids, files and deadlines.
func TestKilledDaemonIsGoneOnWith(t *testing.T) {
	data, run := small(t)
	flags := append([]string{"--on-exit", "keep"}, plain...)
	d := startEmberd(t, data, run, flags...)
	empty := d.ready
	const n = 4
	var ids []string
	pids, uptimes, counts := map[string]int{}, map[string]float64{}, map[string]float64{}
	for range n {
		id := d.create(t)
		d.sh(t, id, "echo mine >/root/file; (i=0; while :; do i=$((i+1)); echo $i >/tmp/n; sleep 1; done) >/dev/null 2>&1 & echo $! >/tmp/pid; sleep 1")
		ids = append(ids, id)
		pids[id] = d.pid(t, id)
	}
	deadlines := d.sandboxes(t)
	var took []time.Duration
	for round := range span(3, 20) {
		how := syscall.SIGKILL
		if round%3 == 2 {
			how = syscall.SIGTERM
		}
		for _, id := range ids {
			uptimes[id], counts[id] = d.pulse(t, id)
		}
		answer := make(chan error, 1)
		if how == syscall.SIGKILL {
			go func() {
				_, err := d.Exec(t.Context(), ids[0], client.Program{Code: "sleep 30"})
				answer <- err
			}()
			d.sh(t, ids[0], "until grep -qs 'slee[p].30' /proc/[0-9]*/cmdline; do sleep 0.2; done")
		}
		d.end(t, how)
		if how == syscall.SIGKILL {
			if err := <-answer; err == nil {
				t.Error("a program has a result that nobody can know")
			}
		}
		d = startEmberd(t, data, run, flags...)
		took = append(took, d.ready)
		t.Logf("round %d: ready after %v; %s", round, d.ready, d.recovery())
		now := d.sandboxes(t)
		if len(now) != n {
			t.Fatalf("round %d: %d sandboxes of %d\n%s", round, len(now), n, d.log)
		}
		for _, id := range ids {
			if moved := now[id].Sub(deadlines[id]).Abs(); moved > time.Second {
				t.Errorf("round %d: the deadline moved by %v", round, moved)
			}
			if pid := d.pid(t, id); pid != pids[id] {
				t.Errorf("round %d: VMM %d became %d", round, pids[id], pid)
			}
			if up, count := d.pulse(t, id); up < uptimes[id] || count <= counts[id] {
				t.Errorf("round %d: uptime %v became %v, count %v became %v", round, uptimes[id], up, counts[id], count)
			}
		}
	}
	t.Logf("ready after %v without sandboxes, with %d of them after %v", empty, n, took)
	// Of 16 deletes that come at once, eight would succeed: one for each sandbox.
	d.end(t, syscall.SIGKILL)
	d = startEmberd(t, data, run, plain...)
	began := time.Now()
	var deleting sync.WaitGroup
	var mu sync.Mutex
	succeeded := 0
	for _, id := range append(ids, ids...) {
		deleting.Go(func() {
			err := d.Delete(t.Context(), id)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				succeeded++
			} else if !isNotFound(err) {
				t.Error(err)
			}
		})
	}
	deleting.Wait()
	if succeeded != n {
		t.Errorf("%d deletes succeeded, of %d sandboxes", succeeded, n)
	}
	for _, pid := range pids {
		for syscall.Kill(pid, 0) == nil && time.Since(began) < 10*time.Second {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("they are not gone after %v", took)
	}
}

// pulse is how long a guest is up, and how far the program that counts in it has
// come, if it and its file are there.
func (d *emberd) pulse(t *testing.T, id string) (uptime, count float64) {
	t.Helper()
	fields := strings.Fields(d.sh(t, id, "sleep 1; test $(cat /root/file) = mine && kill -0 $(cat /tmp/pid) && cat /proc/uptime /tmp/n"))
	if len(fields) != 3 {
		t.Fatalf("no pulse: %q", fields)
	}
	return number(t, fields[0]), number(t, fields[2])
}

// recovery is what the daemon says that it found.
func (d *emberd) recovery() string {
	for line := range strings.Lines(d.log.String()) {
		if _, found, ok := strings.Cut(line, `msg="went on with what an earlier emberd left" `); ok {
			return strings.TrimSpace(found)
		}
	}
	return "it found nothing"
}

// A sandbox whose VMM ended while no daemon ran is lost. What a daemon that was
// killed left otherwise is removed, and nothing that is not its own is touched,
// however much it looks like it.
func TestDebrisAndLookalikes(t *testing.T) {
	data, run := small(t)
	d := startEmberd(t, data, run, plain...)
	kept, died, orphan, swapped := d.create(t), d.create(t), d.create(t), d.create(t)
	in, err := d.Inspect(t.Context(), kept)
	if err != nil {
		t.Fatal(err)
	}
	cgroups := filepath.Dir(filepath.Join("/sys/fs/cgroup", in.Jail.Cgroup))
	jails := filepath.Dir(filepath.Dir(in.Jail.Root))
	dead, orphaned, other := d.pid(t, died), d.pid(t, orphan), d.pid(t, swapped)
	records, vms := paths.Run(run).Sandboxes(), paths.Run(run).VMs()
	vmOf := func(id string) string {
		in, err := d.Inspect(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Base(filepath.Dir(in.Jail.Root))
	}
	orphanVM, swappedVM := vmOf(orphan), vmOf(swapped)
	d.end(t, syscall.SIGKILL)

	// Strangers: programs of the VMM's name, one of them in a cgroup among the
	// jails', and one whose number is in a record.
	t.Cleanup(func() { _ = os.Remove(cgroups) }) // which the daemon leaves to them
	foreign := []string{filepath.Join(jails, "notes"), filepath.Join(cgroups, "backup"), "/sys/fs/cgroup/emberd-00000000"}
	for _, dir := range foreign {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
	}
	strangers := []*exec.Cmd{stranger(t), stranger(t)}
	procs := filepath.Join(foreign[1], "cgroup.procs")
	if err := os.WriteFile(procs, []byte(strconv.Itoa(strangers[0].Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	// What is removed: stale directories and cgroups, and a VM without records.
	var stale []string
	for range 100 {
		id := string(sandbox.NewVMID())
		stale = append(stale, filepath.Join(jails, id), filepath.Join(cgroups, id))
	}
	for _, dir := range stale {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Remove(filepath.Join(records, orphan+".json")), os.Remove(filepath.Join(vms, orphanVM+".json"))); err != nil {
		t.Fatal(err)
	}
	// Lost: one whose VMM ended, and one whose VMM ended and has a namesake.
	for _, pid := range []int{dead, other} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	record := filepath.Join(vms, swappedVM+".json")
	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.ReplaceAll(string(text), fmt.Sprintf(`"pid":%d`, other), fmt.Sprintf(`"pid":%d`, strangers[1].Process.Pid))
	forged = regexp.MustCompile(`"sum":"[^"]*",`).ReplaceAllString(forged, "") // as whoever mends a record does
	if err := os.WriteFile(record, []byte(forged), 0o600); err != nil {
		t.Fatal(err)
	}

	d = startEmberd(t, data, run, plain...)
	t.Logf("ready after %v", d.ready)
	if now := d.sandboxes(t); len(now) != 1 || now[kept].IsZero() {
		t.Errorf("sandboxes: %v, want %s only", now, kept)
	}
	if got := d.sh(t, kept, "echo it goes on"); got != "it goes on" {
		t.Error(got)
	}
	for _, dir := range stale {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there", dir)
		}
	}
	if err := syscall.Kill(orphaned, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the VM without a record is still there: %v", err)
	}
	for _, dir := range foreign {
		if _, err := os.Lstat(dir); err != nil {
			t.Errorf("not ours, and gone: %v", err)
		}
	}
	for _, s := range strangers {
		if err := s.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("a stranger was ended: %v", err)
		}
	}
	for _, id := range []string{died, swapped} {
		if !strings.Contains(d.log.String(), `msg="sandbox lost" sandbox_id=`+id) {
			t.Errorf("the log does not say that %s is lost:\n%s", id, d.log)
		}
	}
}

// stranger is a process that is called like a VMM, and is none.
func stranger(t *testing.T) *exec.Cmd {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = self.Close() }()
	path := filepath.Join(t.TempDir(), "firecracker")
	copied, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(copied, self); err != nil {
		t.Fatal(err)
	}
	if err := copied.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = []string{idleEnv + "=1"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// A microVM that waits in the pool waits on in that of the next daemon.
func TestPoolOutlivesItsDaemon(t *testing.T) {
	data, run := small(t)
	flags := []string{"--templates=false", "--pool", "shell=1:1", "--pool", "python=0", "--default-memory", "128", "--boot-timeout", "3m"}
	first := startEmberd(t, data, run, flags...)
	first.awaitPool(t)
	vms := first.vms(t)
	first.end(t, syscall.SIGKILL)
	d := startEmberd(t, data, run, append(flags, "--on-exit", "keep")...)
	d.awaitPool(t)
	if now := d.vms(t); fmt.Sprint(now) != fmt.Sprint(vms) {
		t.Errorf("%v became %v", vms, now)
	}
	d.end(t, syscall.SIGTERM)
	d = startEmberd(t, data, run, flags...)
	d.awaitPool(t)
	id, err := d.Create(t.Context(), "shell", client.WithBootPath("pool"))
	if err != nil {
		t.Fatal(err)
	}
	in, err := d.Inspect(t.Context(), id)
	if err != nil || !strings.Contains(fmt.Sprint(vms), filepath.Base(filepath.Dir(in.Jail.Root))) {
		t.Errorf("the sandbox has %s, the pool had %v: %v", in.Jail.Root, vms, err)
	}
	if got := d.sh(t, id, "echo it goes on"); got != "it goes on" {
		t.Error(got)
	}
}

// vms are the microVMs that there are records of.
func (d *emberd) vms(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(paths.Run(d.run).VMs())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// awaitPool waits until a microVM waits in the pool.
func (d *emberd) awaitPool(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		stocks, err := d.Pool(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(stocks) == 1 && stocks[0].Ready == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pool stays empty: %+v\n%s", stocks, d.log)
		}
	}
}

// Another daemon on the same directories ends at once, says whose they are, and
// harms nobody.
func TestSecondDaemonEnds(t *testing.T) {
	data, run := small(t)
	d := startEmberd(t, data, run, plain...)
	id := d.create(t)
	program, err := exec.LookPath("emberd")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := exec.Command(program, "--listen", "127.0.0.1:0", "--data-dir", string(data), "--run-dir", run).CombinedOutput()
	if took := time.Since(began); err == nil || took > time.Second {
		t.Errorf("it ended after %v with %v", took, err)
	}
	if want := fmt.Sprintf("pid %d", d.cmd.Process.Pid); !strings.Contains(string(out), want) {
		t.Errorf("it says %q, and not %q", out, want)
	}
	if got := d.sh(t, id, "echo unharmed"); got != "unharmed" {
		t.Error(got)
	}
}

// A data directory whose path is longer than a socket's address may be does as any
// other does, and a run directory of that kind is refused with a word about it.
func TestLongPaths(t *testing.T) {
	data, run := small(t)
	long := filepath.Join(string(data), strings.Repeat("d", 200))
	if err := os.Mkdir(long, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"firecracker", "kernel", "packs"} {
		if err := os.Rename(filepath.Join(string(data), part), filepath.Join(long, part)); err != nil {
			t.Fatal(err)
		}
	}
	d := startEmberd(t, paths.Data(long), run, plain...)
	id := d.create(t)
	if got := d.sh(t, id, "echo it works"); got != "it works" {
		t.Error(got)
	}
	d.end(t, syscall.SIGKILL)
	d = startEmberd(t, paths.Data(long), run, plain...)
	if got := d.sh(t, id, "echo it goes on"); got != "it goes on" {
		t.Error(got)
	}
	d.end(t, syscall.SIGTERM)

	program, err := exec.LookPath("emberd")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, "--listen", "127.0.0.1:0", "--data-dir", long, "--run-dir", filepath.Join(run, strings.Repeat("r", 200)),
		"--on-exit", "stop").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "107") {
		t.Errorf("with a long run directory it ended with %v and said %q", err, out)
	}
}
