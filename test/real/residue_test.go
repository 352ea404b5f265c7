package real

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/testenv/oracle"
)

// mark begins each secret of a sandbox, so that what looks for one need not
// hold it.
const mark = "residue-"

func newSecret() string { return mark + rand.Text() }

// keep is a program that leaves a secret on the disk, in a tmpfs, in the page
// cache and in memory that a process goes on holding.
const keep = `
import os, time
secret = %q.encode()
for path in ("/root/secret", "/tmp/secret", "/dev/shm/secret"):
    with open(path, "wb") as f:
        f.write(secret * 1000)
if os.fork() == 0:
    os.setsid()
    for fd in range(3): os.close(fd)
    held = bytearray(secret * 100000)
    time.sleep(600)
    held[0] = 0
`

// look is a program that goes through the guest's disk, and counts how often it
// finds the secrets with these hashes.
const look = `
import hashlib, os
want, mark, size, seen = %q.split(), b"resi" + b"due-", 26, 0
hits = dict.fromkeys(want, 0)
fd, tail = os.open("/dev/vda", os.O_RDONLY), b""
while chunk := os.read(fd, 1 << 20):
    seen += len(chunk)
    data = tail + chunk
    i = data.find(mark)
    while i >= 0:
        found = hashlib.sha256(data[i:i + len(mark) + size]).hexdigest()
        if found in hits:
            hits[found] += 1
        i = data.find(mark, i + 1)
    tail = data[-64:]
print(seen >> 20, *(hits[h] for h in want))
`

// search tells how often each of the secrets is found in a sandbox: on its disk,
// and in all that its VMM can write to, which is more memory than its kernel has.
func (h *host) search(t *testing.T, id string, secrets ...string) []int {
	t.Helper()
	var hashes []string
	for _, s := range secrets {
		hashes = append(hashes, fmt.Sprintf("%x", sha256.Sum256([]byte(s))))
	}
	res, err := h.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf(look, strings.Join(hashes, " "))})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("search: %s%s, %v", res.Stderr, res.Err, err)
	}
	var disk int
	hits := make([]int, len(secrets))
	into := []any{&disk}
	for i := range hits {
		into = append(into, &hits[i])
	}
	if _, err := fmt.Sscan(string(res.Stdout), into...); err != nil {
		t.Fatalf("search: %q, %v", res.Stdout, err)
	}
	memory := eachMemory(t, h.vmm(t, id), func(b []byte) {
		for i, secret := range secrets {
			hits[i] += bytes.Count(b, []byte(secret))
		}
	})
	t.Logf("searched %d MiB of memory and %d MiB of disk: %v", memory>>20, disk, hits)
	if memory>>20 < 100 || disk < 10 {
		t.Errorf("searched %d MiB of memory and %d MiB of disk, which is not all", memory>>20, disk)
	}
	return hits
}

// eachMemory calls f with all that a process can write to, and returns how many
// bytes that is. What is on the edge of two calls is in both.
func eachMemory(t *testing.T, pid int, f func([]byte)) (total int64) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	const overlap = 64
	buf := make([]byte, overlap+1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var perms string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); err != nil || !strings.HasPrefix(perms, "rw") {
			continue // among them one that has no address that a file can have
		}
		clear(buf[:overlap])
		for at := from; at < to; {
			n, err := mem.ReadAt(buf[overlap:overlap+min(to-at, 1<<20)], at)
			if n == 0 {
				t.Logf("%s is not to be read: %v", strings.TrimSpace(line), err)
				break
			}
			f(buf[:overlap+n])
			copy(buf, buf[n:n+overlap])
			at, total = at+int64(n), total+int64(n)
		}
	}
	return total
}

// What a sandbox leaves in its memory and on its disk, the next one does not
// find, and neither finds anything of the host's.
func TestResidueAndSecrets(t *testing.T) {
	host := oracle.Canary{Text: newSecret()}
	t.Setenv("EMBERD_TEST_SECRET", host.Text)
	h := newHost(t, func(c *daemon.Config) {
		c.Limits.Default.MemoryMiB, c.BootTimeout = 128, 2*daemon.DefaultBootTimeout
	})
	if err := host.Plant(filepath.Join(string(h.cfg.DataDir), "secret")); err != nil {
		t.Fatal(err)
	}
	// Twenty rounds, or as many as fit: three at least.
	const rounds, fewest = 20, 3
	end := time.Now().Add(span(90*time.Second, time.Hour))
	previous, vms := host.Text, map[string]bool{}
	for n := range rounds {
		if n >= fewest && time.Now().After(end) {
			t.Logf("%d rounds", n)
			break
		}
		id, secret := h.create(t, "python"), newSecret()
		if vm := h.inspect(t, id).Root; vms[vm] {
			t.Errorf("round %d: the microVM of %s has served before", n, vm)
		} else {
			vms[vm] = true
		}
		if n == 0 {
			h.findSecrets(t, id, host)
		} else if hits := h.search(t, id, previous, host.Text); hits[0]+hits[1] > 0 {
			t.Errorf("round %d: the sandbox holds the previous one's secret %d times, the host's %d times", n, hits[0], hits[1])
		}
		if res, err := h.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf(keep, secret)}); err != nil || res.ExitCode != 0 {
			t.Fatalf("keep: %s%s, %v", res.Stderr, res.Err, err)
		}
		if n == 0 {
			// The search has to be able to find something.
			if hits := h.search(t, id, secret, host.Text); hits[0] < 1000 || hits[1] > 0 {
				t.Errorf("its own secret was found %d times, the host's %d times", hits[0], hits[1])
			}
		}
		if err := h.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		previous = secret
	}
	oracle.Report(t, host.Seen("the daemon's log", []byte(h.log.String())))
}

// findSecrets looks for the host's canary, name and directories where a guest
// is told things, and for the canary in what the VMM was given.
func (h *host) findSecrets(t *testing.T, id string, canary oracle.Canary) {
	t.Helper()
	const tell = "import os, glob\n" +
		"for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline') + ['/proc/cmdline', '/proc/version', '/etc/hostname', '/proc/mounts']:\n" +
		"  try: print(open(path, 'rb').read())\n  except OSError: pass\n" +
		"print(os.popen('dmesg 2>/dev/null').read(), os.environ)"
	res, err := h.Exec(t.Context(), id, client.Program{Code: tell})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("tell: %s, %v", res.Stderr, err)
	}
	told := append(res.Stdout, res.Stderr...)
	oracle.Report(t, canary.Seen("the guest", told))
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, private := range []string{string(h.cfg.DataDir), string(h.cfg.RunDir), "hostname=" + name, id} {
		if strings.Contains(string(told), private) {
			t.Errorf("the guest is told %q", private)
		}
	}
	for _, file := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", h.vmm(t, id), file))
		if err != nil {
			t.Fatal(err)
		}
		oracle.Report(t, canary.Seen("the VMM's "+file, b))
		if file == "environ" && len(b) > 0 {
			t.Errorf("the VMM has an environment: %q", b)
		}
	}
}
