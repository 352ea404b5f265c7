package real

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/client"
)

// inspect returns the jail of a sandbox.
func (h *host) inspect(t testing.TB, id string) rest.Jail {
	t.Helper()
	in, err := h.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if vmm := h.vmm(t, id); in.Jail.PID != vmm {
		t.Errorf("the VMM is said to be process %d, and is %d", in.Jail.PID, vmm)
	}
	return in.Jail
}

// run runs code that has to succeed, and returns what it wrote.
func (h *host) run(t testing.TB, id, code string) string {
	t.Helper()
	res, err := h.Exec(t.Context(), id, client.Program{Code: code})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("exit %d, %q, %v", res.ExitCode, res.Stderr, err)
	}
	return string(res.Stdout)
}

// Everything that a jail says of itself is so for the live VMM, for each of its
// threads, before and after it has run a program.
func TestPosture(t *testing.T) {
	h := newHost(t)
	ids := []string{h.create(t, "shell"), h.create(t, "shell")}
	jails := []rest.Jail{h.inspect(t, ids[0]), h.inspect(t, ids[1])}
	if jails[0].UID == jails[1].UID || jails[0].GID == jails[1].GID {
		t.Errorf("two VMMs are user %d and %d", jails[0].UID, jails[1].UID)
	}
	for _, when := range []string{"after the start", "after an exec"} {
		for _, j := range jails {
			t.Run(when, func(t *testing.T) {
				checkThreads(t, j)
				checkRoot(t, j)
				checkFiles(t, j)
				checkDescriptors(t, j)
				checkCgroup(t, j)
				checkRlimits(t, j)
			})
		}
		for _, name := range jails[0].Namespaces {
			one, other, own := namespace(t, jails[0].PID, name), namespace(t, jails[1].PID, name), namespace(t, os.Getpid(), name)
			if one == other || one == own || other == own {
				t.Errorf("%s: %s namespaces %s and %s, the daemon's is %s", when, name, one, other, own)
			}
		}
		for _, id := range ids {
			checkDevices(t, h, id)
			h.run(t, id, "head -c 100000 /dev/urandom | wc -c; ls -R / >/dev/null 2>&1; true")
		}
	}
}

func namespace(t *testing.T, pid int, name string) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// capabilityNumber are the capabilities that a bounding set may have.
var capabilityNumber = map[string]uint{
	"chown": unix.CAP_CHOWN, "dac_override": unix.CAP_DAC_OVERRIDE, "fowner": unix.CAP_FOWNER, "mknod": unix.CAP_MKNOD,
	"setgid": unix.CAP_SETGID, "setuid": unix.CAP_SETUID, "sys_admin": unix.CAP_SYS_ADMIN,
}

func checkThreads(t *testing.T, j rest.Jail) {
	t.Helper()
	if j.UID == 0 || j.GID == 0 {
		t.Errorf("the VMM is %d:%d", j.UID, j.GID)
	}
	var bounding uint64
	for _, name := range j.BoundingSet {
		bounding |= 1 << capabilityNumber[name]
	}
	want := map[string]string{
		"Uid":    strings.TrimSpace(strings.Repeat(fmt.Sprint(j.UID, " "), 4)),
		"Gid":    strings.TrimSpace(strings.Repeat(fmt.Sprint(j.GID, " "), 4)),
		"Groups": "", "Umask": j.Umask, "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
		"CapInh": fmt.Sprintf("%016x", 0), "CapPrm": fmt.Sprintf("%016x", 0), "CapEff": fmt.Sprintf("%016x", 0),
		"CapAmb": fmt.Sprintf("%016x", 0), "CapBnd": fmt.Sprintf("%016x", bounding),
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", j.PID))
	if err != nil || len(tasks) < 3 {
		t.Fatalf("threads: %v, %v; want those of the VMM, its API and its vCPU", tasks, err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			got[name] = strings.Join(strings.Fields(value), " ")
		}
		for name, value := range want {
			if got[name] != value {
				t.Errorf("%s (%s): %s is %q, want %q", task, got["Name"], name, got[name], value)
			}
		}
		if pids := strings.Fields(got["NSpid"]); len(pids) != 2 {
			t.Errorf("%s: NSpid is %q, want a namespace of its own", task, pids)
		}
	}
}

func checkRoot(t *testing.T, j rest.Jail) {
	t.Helper()
	want, err := os.Stat(j.Root)
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"root", "cwd"} {
		got, err := os.Stat(fmt.Sprintf("/proc/%d/%s", j.PID, link))
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(got, want) {
			t.Errorf("%s is not the jail's root directory", link)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", j.PID))
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(mounts, []byte("\n")); lines != 1 || !bytes.Contains(mounts, []byte("/"+filepath.Base(filepath.Dir(j.Root))+"/root / ")) {
		t.Errorf("the VMM's mounts are\n%swant its root directory alone", mounts)
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", j.PID)); err != nil || len(env) > 0 {
		t.Errorf("the VMM's environment is %q, %v", env, err)
	}
}

// descriptors are what a VMM may have open, and how: 'r' to read only, else
// anything.
var descriptors = []struct {
	target *regexp.Regexp
	access byte
}{
	{regexp.MustCompile(`^/dev/null$`), 'r'},
	{regexp.MustCompile(`^/(kernel|initrd|rootfs)$`), 'r'},
	{regexp.MustCompile(`^/dev/(kvm|urandom)$`), 0},
	{regexp.MustCompile(`^pipe:`), 0},
	{regexp.MustCompile(`^anon_inode:(\[eventfd\]|\[eventpoll\]|\[timerfd\]|kvm-vm|kvm-vcpu:\d+)$`), 0},
	{regexp.MustCompile(`^socket:`), 0},
}

func checkDescriptors(t *testing.T, j rest.Jail) {
	t.Helper()
	// A socket that was accepted belongs to the network namespace of whoever
	// connected, and has the name of the one that listened.
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", j.PID))
	ours, err2 := os.ReadFile("/proc/self/net/unix")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", j.PID))
	if err != nil || len(fds) < 3 {
		t.Fatalf("descriptors: %v, %v", fds, err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			t.Fatal(err)
		}
		// What is in the jail is found there under the host's name, too.
		target = strings.TrimPrefix(target, j.Root)
		if info, err := os.Stat(fd); err != nil || info.IsDir() {
			t.Errorf("%s is %s: %v, %v", fd, target, info, err)
		}
		i := slices.IndexFunc(descriptors, func(d struct {
			target *regexp.Regexp
			access byte
		},
		) bool {
			return d.target.MatchString(target)
		})
		if i < 0 {
			t.Errorf("the VMM has %s open", target)
			continue
		}
		if descriptors[i].access == 'r' && accessMode(t, j.PID, filepath.Base(fd)) != unix.O_RDONLY {
			t.Errorf("the VMM can write %s", target)
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inode = strings.TrimSuffix(inode, "]")
			named := regexp.MustCompile(`(?m) ` + inode + ` /(api|vm)\.sock$`)
			if !named.Match(own) && !named.Match(ours) {
				t.Errorf("%s is none of the VMM's two", target)
			}
		}
	}
}

// accessMode is how a process has a descriptor open.
func accessMode(t *testing.T, pid int, fd string) int64 {
	t.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	flags, err := strconv.ParseInt(field(info, "flags"), 8, 64)
	if err != nil {
		t.Fatal(err)
	}
	return flags & unix.O_ACCMODE
}

func checkCgroup(t *testing.T, j rest.Jail) {
	t.Helper()
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", j.PID)); err != nil || string(b) != "0::"+j.Cgroup+"\n" {
		t.Errorf("the cgroup is %q, %v, want %s", b, err, j.Cgroup)
	}
	want := []string{"cpu.max", "io.max", "memory.max", "memory.oom.group", "memory.swap.max", "pids.max"}
	if got := slices.Sorted(maps.Keys(j.CgroupLimits)); !slices.Equal(got, want) || len(j.Missing) > 0 {
		t.Errorf("limits %v, missing %v", got, j.Missing)
	}
	for file, want := range j.CgroupLimits {
		got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", j.Cgroup, file))
		if err != nil || string(bytes.TrimSpace(got)) != want {
			t.Errorf("%s is %q, %v, want %q", file, got, err, want)
		}
	}
}

func checkRlimits(t *testing.T, j rest.Jail) {
	t.Helper()
	for name, number := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "fsize": unix.RLIMIT_FSIZE, "core": unix.RLIMIT_CORE} {
		var got unix.Rlimit
		if err := unix.Prlimit(j.PID, number, nil, &got); err != nil {
			t.Fatal(err)
		}
		if want, ok := j.Rlimits[name]; !ok || got.Cur != want || got.Max != want {
			t.Errorf("%s is limited to %d and %d, want %d", name, got.Cur, got.Max, want)
		}
	}
}

// checkFiles looks for what the jail says that it holds, and the sockets that
// Firecracker makes, with that owner and mode.
func checkFiles(t *testing.T, j rest.Jail) {
	t.Helper()
	want := map[string]string{}
	for _, f := range j.Files {
		want[f.Path] = fmt.Sprintf("%s %s %d:%d", f.Kind, f.Mode, f.UID, f.GID)
		if f.Source != "" && (f.UID != 0 || f.GID != 0) {
			t.Errorf("%s, which all VMs share, belongs to %d:%d", f.Path, f.UID, f.GID)
		}
	}
	for _, socket := range []string{"/api.sock", "/vm.sock"} {
		want[socket] = fmt.Sprintf("socket 0700 %d:%d", j.UID, j.GID)
	}
	got := map[string]string{}
	err := filepath.WalkDir(j.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		kind := map[uint32]string{
			unix.S_IFDIR: "dir", unix.S_IFREG: "file", unix.S_IFCHR: "device", unix.S_IFSOCK: "socket",
		}[st.Mode&unix.S_IFMT]
		if st.Mode&0o022 != 0 {
			t.Errorf("%s can be written by others", path)
		}
		got["/"+strings.TrimPrefix(strings.TrimPrefix(path, j.Root), "/")] = fmt.Sprintf("%s %04o %d:%d", kind, st.Mode&0o7777, st.Uid, st.Gid)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for path := range maps.Keys(want) {
		if got[path] != want[path] {
			t.Errorf("%s is %q, want %q", path, got[path], want[path])
		}
	}
	for path := range maps.Keys(got) {
		if want[path] == "" {
			t.Errorf("%s is there: %q", path, got[path])
		}
	}
}

// checkDevices looks for a disk, an entropy source and a vsock in the guest, and
// nothing else: no PCI, no network, no way to be a hypervisor itself.
func checkDevices(t *testing.T, h *host, id string) {
	t.Helper()
	got := h.run(t, id, `
cat /sys/bus/virtio/devices/*/device | sort | tr '\n' ' '; echo
for d in /sys/bus/pci/devices/* /sys/class/net/* /sys/class/block/vd* /dev/kvm /dev/vd*; do
	[ -e "$d" ] && echo "$d"
done
grep -owE 'vmx|svm|kvm|QEMU' /proc/cpuinfo | sort -u
true`)
	want := "0x0002 0x0004 0x0013 \n/sys/class/net/lo\n/sys/class/block/vda\n/dev/vda\n"
	if got != want {
		t.Errorf("the guest has\n%swant\n%s", got, want)
	}
}

// writeDisk tries all that root in a guest can do to write its disk.
const writeDisk = `
import ctypes, fcntl, hashlib, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, f):
    try:
        f()
    except OSError as e:
        print(name, os.strerror(e.errno))
    else:
        print(name, "WORKED")
def writable():
    fd = os.open("/dev/vda", os.O_RDONLY)
    fcntl.ioctl(fd, 0x125d, b"\0\0\0\0")  # BLKROSET: as blockdev --setrw does
def write(flags):
    fd = os.open("/dev/vda", os.O_WRONLY | flags)
    os.pwrite(fd, os.urandom(1 << 20), 0)
    os.fsync(fd)
def mounted(*args):
    if libc.mount(*args) != 0:
        raise OSError(ctypes.get_errno(), "mount")
def remount():
    os.makedirs("/tmp/image", exist_ok=True)
    mounted(b"/dev/vda", b"/tmp/image", b"squashfs", 1, None)
    mounted(b"/dev/vda", b"/tmp/image", b"squashfs", 32, None)  # remount, rw
    open("/tmp/image/new", "w").write("x")
try:
    writable()
except OSError:
    pass
attempt("write", lambda: write(0))
attempt("direct", lambda: write(os.O_SYNC | 0o40000))
attempt("remount", remount)
`

// Root in a guest cannot change the image it runs from, whatever it has its own
// kernel believe, and the next sandbox is as clean as the first.
func TestImageWithstandsItsGuest(t *testing.T) {
	h := newHost(t)
	image := h.cfg.DataDir.PackRootfs("python")
	before := digest(t, image)
	const look = `import hashlib; print(hashlib.sha256(open("/dev/vda", "rb").read(4 << 20)).hexdigest())`

	id := h.create(t, "python")
	clean := h.run(t, id, look)
	got := h.run(t, id, writeDisk)
	if n := strings.Count(got, "\n"); n != 3 || strings.Contains(got, "WORKED") {
		t.Errorf("the guest's attempts ended in\n%s", got)
	}
	t.Logf("%s", got)
	if err := h.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if after := digest(t, image); after != before {
		t.Errorf("the image's digest is %s, was %s", after, before)
	}
	if next := h.run(t, h.create(t, "python"), look); next != clean {
		t.Errorf("the next sandbox has a disk with digest %s, the first had %s", next, clean)
	}
}
