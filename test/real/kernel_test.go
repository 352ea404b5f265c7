package real

import (
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/emberd/emberd/client"
)

var guestKernel = flag.String("kernel", "", "kernel that sandboxes must have: debian or build (default: either)")

// needFrames deletes the sandbox and skips the test if the guests' kernel is the
// built one, whose programs can send no frames of their own making, which is
// checked. Debian's lets them: there a program plays the guest that has a kernel of
// its own.
func needFrames(t *testing.T, c *client.Client, id string) {
	t.Helper()
	res, err := c.Exec(t.Context(), id, client.Program{Code: "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)"})
	if err != nil {
		t.Fatal(err)
	}
	refused := strings.Contains(string(res.Stderr), "Address family not supported")
	if *guestKernel != "build" && res.ExitCode != 0 || *guestKernel == "build" && !refused {
		t.Fatalf("a packet socket: exit %d, %q", res.ExitCode, res.Stderr)
	}
	if refused {
		if err := c.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
		t.Skip("the built kernel has no packet sockets; what is sent by them is sent with Debian's")
	}
}

// TestWhatProgramsNeed runs what programs ask of a kernel, whichever one that is.
func TestWhatProgramsNeed(t *testing.T) {
	h := newHost(t)
	id := h.create(t, "python")
	for _, tt := range []struct{ name, code string }{
		{"threads", `
import threading
lock, n = threading.Lock(), [0]
def add():
    for _ in range(1000):
        with lock: n[0] += 1
threads = [threading.Thread(target=add) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert n[0] == 8000, n`},
		{"processes and semaphores", `
import multiprocessing, os
context = multiprocessing.get_context("fork")
lock, queue = context.Lock(), context.Queue()
def work(n):
    with lock: queue.put(n * n)
workers = [context.Process(target=work, args=(n,)) for n in range(3)]
[w.start() for w in workers]
assert sorted(queue.get(timeout=30) for _ in workers) == [0, 1, 4]
[w.join() for w in workers]`},
		{"shared memory", `
from multiprocessing import shared_memory
a = shared_memory.SharedMemory(create=True, size=1 << 20)
b = shared_memory.SharedMemory(a.name)
a.buf[-1] = 42
assert b.buf[-1] == 42
b.close(); a.close(); a.unlink()`},
		{"System V and POSIX queues", `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
shm = libc.shmget(0, 4096, 0o1600)
assert shm >= 0, os.strerror(ctypes.get_errno())
assert libc.shmctl(shm, 0, None) == 0
assert libc.mq_open(b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None) >= 0, os.strerror(ctypes.get_errno())
assert libc.mq_unlink(b"/queue") == 0`},
		{"sockets", `
import socket, tempfile, os
for family, address in (socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0)), (socket.AF_UNIX, tempfile.mktemp()):
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind(address); server.listen()
        client.connect(server.getsockname())
        peer, _ = server.accept()
        client.sendall(b"x" * 100000); client.shutdown(socket.SHUT_WR)
        with peer: assert len(peer.makefile("rb").read()) == 100000`},
		{"event loop", `
import asyncio, os, select, signal, ctypes
async def main():
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    out, _ = await child.communicate(b"hello")
    assert out == b"hello"
asyncio.run(main())
event = os.eventfd(0)
os.eventfd_write(event, 7)
assert os.eventfd_read(event) == 7
libc = ctypes.CDLL(None)
assert libc.timerfd_create(1, 0) >= 0
mask = ctypes.create_string_buffer(128)
assert libc.signalfd(-1, mask, 0) >= 0`},
		{"file watcher", `
import ctypes, os, tempfile
libc = ctypes.CDLL(None)
fd, dir = libc.inotify_init(), tempfile.mkdtemp()
assert libc.inotify_add_watch(fd, dir.encode(), 0x100) >= 0
open(dir + "/new", "w").close()
assert b"new" in os.read(fd, 4096)`},
		{"big files and locks", `
import fcntl, os, tempfile
with tempfile.NamedTemporaryFile() as f:
    fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)
    f.seek(5 << 30); f.write(b"end"); f.flush()
    assert os.stat(f.name).st_size == (5 << 30) + 3
    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)`},
		{"memory files", `
import mmap, os
fd = os.memfd_create("x"); os.ftruncate(fd, 4096)
with mmap.mmap(fd, 4096) as m: m[0] = 1; m.madvise(mmap.MADV_DONTNEED)
assert len(os.getrandom(64)) == 64`},
		{"terminal", `
import os, pty
pid, fd = pty.fork()
if pid == 0: os.execvp("tty", ["tty"])
assert os.read(fd, 100).startswith(b"/dev/pts/"); os.waitpid(pid, 0)`},
		{"sandbox of one's own", `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
# new user, mount, UTS, IPC, process and network namespaces
assert libc.unshare(0x10000000 | 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000) == 0, os.strerror(ctypes.get_errno())
assert libc.prctl(21, 0, 0, 0, 0) == 0 # seccomp's mode`},
		{"scripts", `
import os, subprocess
open("/tmp/script", "w").write("#!/bin/sh\necho script"); os.chmod("/tmp/script", 0o755)
assert subprocess.check_output(["/tmp/script"]) == b"script\n"`},
		{"memory of a process", `
assert any(l.startswith("Pss:") for l in open("/proc/self/smaps_rollup"))
assert "pgfault" in open("/proc/vmstat").read()`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := h.Exec(t.Context(), id, client.Program{Code: tt.code})
			if err != nil {
				t.Fatal(err)
			}
			if res.ExitCode != 0 || res.Err != "" {
				t.Errorf("exit %d (%s)\n%s", res.ExitCode, res.Err, res.Stderr)
			}
		})
	}
}

// findOffered prints the kernel's release, and then which of the things that
// only attackers miss it offers.
const findOffered = `
import ctypes, errno, os, socket
print(os.uname().release)
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    libc.syscall(number, *[ctypes.c_long(-1)] * 6)
    return ctypes.get_errno() != errno.ENOSYS
def family(n, kind=socket.SOCK_RAW):
    try: socket.socket(n, kind).close()
    except OSError as e: return e.errno != errno.EAFNOSUPPORT
    return True
offered = dict(
    io_uring=call(425), aio=call(206), bpf=call(321), userfaultfd=call(323),
    keyctl=call(250), kexec=call(246) or call(320), modules=call(313), iopl=call(172),
    ldt=call(154), packet=family(17), crypto_sockets=family(38, socket.SOCK_SEQPACKET),
    mem=os.path.exists("/dev/mem"), port=os.path.exists("/dev/port"), kcore=os.path.exists("/proc/kcore"),
    kallsyms=os.path.exists("/proc/kallsyms"), debugfs="debugfs" in open("/proc/filesystems").read(),
)
for name, there in sorted(offered.items()):
    if there: print(name)
`

// TestGuestKernel checks that sandboxes have the kernel that they are meant to,
// and that a built one offers nothing that its configuration leaves out.
func TestGuestKernel(t *testing.T) {
	h := newHost(t)
	res, err := h.Exec(t.Context(), h.create(t, "python"), client.Program{Code: findOffered})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%s, %v", res.Stderr, err)
	}
	lines := strings.Fields(string(res.Stdout))
	release, offered := lines[0], lines[1:]
	t.Logf("%s offers %q", release, offered)
	var kernel string
	switch {
	case strings.HasSuffix(release, "-emberd"):
		kernel = "build"
		if len(offered) > 0 {
			t.Errorf("the built kernel offers %q", offered)
		}
	case strings.HasSuffix(release, "-cloud-amd64"):
		kernel = "debian"
		if !slices.Contains(offered, "bpf") || !slices.Contains(offered, "io_uring") {
			t.Errorf("the probe finds only %q in Debian's kernel", offered)
		}
	default:
		t.Fatalf("sandboxes have kernel %s, which is none of emberd's", release)
	}
	if *guestKernel != "" && *guestKernel != kernel {
		t.Errorf("sandboxes have kernel %s, which is %s, want %s", release, kernel, *guestKernel)
	}
}
