package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// What tells one guest something about another, though neither left its VMM: the
// processor, or what the host's kernel does with memory.

func checkMitigations(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	const dir = "sys/devices/system/cpu/vulnerabilities"
	entries, err := fs.ReadDir(env.Host, dir)
	if err != nil || len(entries) == 0 {
		return unknown("the kernel does not say what it does about weaknesses of the processor")
	}
	var open []string
	for _, entry := range entries {
		text, err := fs.ReadFile(env.Host, path.Join(dir, entry.Name()))
		if err == nil && strings.HasPrefix(string(text), "Vulnerable") {
			open = append(open, entry.Name())
		}
	}
	if len(open) > 0 {
		return warn("the processor is open to "+strings.Join(open, ", ")+", by which a guest may read memory that is not its own",
			"update kernel and microcode, and boot without mitigations=off")
	}
	return ok(fmt.Sprintf("%d weaknesses of processors are dealt with, or not there", len(entries)))
}

func checkSMT(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	switch text(env, "sys/devices/system/cpu/smt/active") {
	case "0":
		return ok("no two threads share a core")
	case "1":
		return warn("two guests can run on one core, and learn of each other through its caches",
			"echo off | sudo tee /sys/devices/system/cpu/smt/control")
	}
	return unknown("the kernel does not say whether threads share a core")
}

func checkSwap(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	swaps, err := fs.ReadFile(env.Host, "proc/swaps")
	switch {
	case err != nil:
		return unknown("it is not known whether there is swap")
	case strings.Count(strings.TrimSpace(string(swaps)), "\n") > 0:
		return warn("there is swap: guests are kept out of it, but what emberd holds of programs may be written to a disk", "sudo swapoff -a")
	}
	return ok("there is no swap")
}

func checkKSM(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	switch text(env, "sys/kernel/mm/ksm/run") {
	case "1":
		return warn("the kernel merges equal pages, by which a guest can find out what is in another one", "echo 2 | sudo tee /sys/kernel/mm/ksm/run")
	case "":
		return ok("the kernel does not merge equal pages: it cannot")
	}
	return ok("the kernel does not merge equal pages")
}

// What a daemon with a thousand sandboxes opens: six files for each, and its
// clients.
const manyFiles = 16 << 10

func checkFiles(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	n, err := env.FileLimit()
	switch {
	case err != nil:
		return unknown("how many files may be open is not known: " + err.Error())
	case n < manyFiles:
		return warn(fmt.Sprintf("%d files may be open, which is enough for %d sandboxes", n, n/16), fmt.Sprintf("ulimit -n %d, or LimitNOFILE= of the unit", 4*manyFiles))
	}
	return ok(fmt.Sprintf("%d files may be open", n))
}

func checkClock(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	synced, err := env.ClockSynced()
	switch {
	case err != nil:
		return unknown("it is not known whether the clock is right: " + err.Error())
	case kvm.Emulated:
		return ok("the machine has the clock of its host")
	case !synced:
		return warn("nothing keeps the clock right, and guests get it from here", "sudo systemctl enable --now systemd-timesyncd")
	}
	return ok("the clock is kept right")
}

// maxSocketPath is the longest path of a Unix socket, without the NUL at its end.
const maxSocketPath = 107

func checkRunDir(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	if socket := env.Run.Socket(); len(socket) > maxSocketPath {
		return fail(fmt.Sprintf("the path of the socket %s has %d bytes, and the kernel takes %d", socket, len(socket), maxSocketPath), "choose a shorter --run-dir or --socket")
	}
	tmpfs, err := env.Tmpfs(string(env.Run))
	if err != nil {
		return unknown("what the run directory is on is not known: " + err.Error())
	}
	if n, err := env.Free(string(env.Run)); err == nil && n < tightRun {
		return fail(fmt.Sprintf("%d KiB free for %s", n>>10, env.Run), "make room, or choose another --run-dir")
	}
	if !tmpfs {
		return warn(fmt.Sprintf("%s is not in memory, so records of sandboxes outlive the host's reboot, and each costs a write to a disk", env.Run), "choose a --run-dir below /run")
	}
	return ok(fmt.Sprintf("%s is in memory", env.Run))
}

// tightRun is less than the records of a thousand sandboxes take.
const tightRun = 4 << 20

func checkLeftovers(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	records, err := fs.ReadDir(env.Host, strings.TrimPrefix(env.Run.Sandboxes(), "/"))
	if err != nil && env.Euid != 0 {
		return unknown("only root can look for them")
	}
	jails, _ := fs.ReadDir(env.Host, strings.TrimPrefix(path.Join(env.Data.Jails(), "firecracker"), "/"))
	holder := text(env, strings.TrimPrefix(env.Run.Lock(), "/"))
	if pid, err := strconv.Atoi(holder); err == nil && text(env, fmt.Sprintf("proc/%d/comm", pid)) == "emberd" {
		return ok(fmt.Sprintf("emberd runs (pid %d) with %d sandboxes", pid, len(records)))
	}
	if len(records)+len(jails) > 0 {
		return warn(fmt.Sprintf("no emberd runs, and there are %d records of sandboxes and %d jails; the next one goes on with them or clears them", len(records), len(jails)), "sudo emberd")
	}
	return ok("no emberd runs, and none left anything")
}

// text is a short file of the host, "" if there is none.
func text(env Env, name string) string {
	b, _ := fs.ReadFile(env.Host, name)
	return strings.TrimSpace(string(b))
}

// Wrong returns the results that are not ok.
func Wrong(results []Result) []Result {
	return slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return r.Verdict == OK })
}
