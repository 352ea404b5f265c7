package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/x/source"
)

const setupCommand = "sudo emberctl setup"

// notHere is the reason why a check passes on a host without KVM.
const notHere = "not needed: emberd runs in the machine here, which has its own"

func checkRoot(_ context.Context, env Env, kvm KVM) Result {
	switch {
	case !kvm.Usable:
		return ok("not needed: the machine runs without root")
	case env.Euid != 0:
		return warn("emberd has to run as root to jail its microVMs; this is not root", "sudo emberd")
	default:
		return ok("running as root")
	}
}

// controllers are what the limits of a microVM need.
var controllers = []string{"cpu", "memory", "pids"}

func checkCgroups(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	raw, err := fs.ReadFile(env.Host, "sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return fail("cgroup v2 is not mounted at /sys/fs/cgroup",
			"boot with the kernel option systemd.unified_cgroup_hierarchy=1")
	}
	have := strings.Fields(string(raw))
	missing := slices.DeleteFunc(slices.Clone(controllers), func(c string) bool { return slices.Contains(have, c) })
	if len(missing) > 0 {
		return fail("cgroup v2 lacks the controllers "+strings.Join(missing, ", "),
			"boot without cgroup_disable= and without cgroup v1 mounts of them")
	}
	return ok("cgroup v2 with " + strings.Join(controllers, ", "))
}

func checkFirecracker(ctx context.Context, env Env, _ KVM) Result {
	for _, path := range []string{env.Data.Firecracker(), env.Data.Jailer()} {
		if _, err := os.Stat(path); err != nil {
			return fail(filepath.Base(path)+" is missing: "+cause(err), setupCommand)
		}
	}
	version, err := env.Versions(ctx, env.Data.Firecracker(), env.Data.Jailer())
	if err != nil {
		return fail(err.Error(), setupCommand+" --firecracker DIR")
	}
	return ok("Firecracker " + version + " with its jailer")
}

func checkAdvisories(ctx context.Context, env Env, _ KVM) Result {
	text, err := env.Versions(ctx, env.Data.Firecracker(), env.Data.Jailer())
	if err != nil {
		return unknown("not known without Firecracker's version")
	}
	v, err := parseVersion(text)
	if err != nil {
		return unknown(err.Error())
	}
	var found []string
	for _, a := range advisories {
		if a.affects(v) {
			found = append(found, a.text)
		}
	}
	if len(found) == 0 {
		return ok("none known for Firecracker " + text)
	}
	return warn(fmt.Sprintf("Firecracker %s: %s", text, strings.Join(found, "; ")),
		setupCommand+" --firecracker DIR with release "+recommended)
}

func checkKernel(_ context.Context, env Env, kvm KVM) Result {
	paths := []string{env.Data.Vmlinux(), env.Data.GuestModules()}
	if !kvm.Usable {
		paths = append(paths, env.Data.Vmlinuz(), env.Data.MachineModules())
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return fail("the kernel is not complete: "+cause(err), setupCommand)
		}
	}
	rec, err := source.Read[kernel.Record](env.Data.GuestKernel())
	if err != nil {
		return fail(err.Error(), setupCommand)
	}
	return ok(fmt.Sprintf("%s, in %s", rec, env.Data.GuestKernel()))
}

func checkPacks(_ context.Context, env Env, _ KVM) Result {
	defs, err := pack.Definitions()
	if err != nil {
		return fail(err.Error(), "")
	}
	var ready, bad []string
	verdict := OK
	for _, def := range defs {
		status, _, err := pack.Inspect(env.Data, def)
		switch {
		case status == pack.Ready:
			ready = append(ready, def.Name)
			continue
		case err != nil:
			bad = append(bad, err.Error())
		default:
			bad = append(bad, fmt.Sprintf("pack %s is %s", def.Name, status))
		}
		if status == pack.OutOfDate && verdict != Fail {
			verdict = Warn
		} else {
			verdict = Fail
		}
	}
	if len(bad) > 0 {
		return Result{Verdict: verdict, Reason: strings.Join(bad, "; "), Remedy: setupCommand}
	}
	return ok("ready: " + strings.Join(ready, ", "))
}

// What the data directory should have room for: a rebuild of the packs beside
// the old ones, and below that not even the jails' sockets and logs.
const (
	roomyBytes = 1 << 30
	tightBytes = 64 << 20
)

func checkDisk(_ context.Context, env Env, _ KVM) Result {
	n, err := env.Free(string(env.Data))
	if err != nil {
		return unknown("the free space is not known: " + err.Error())
	}
	reason := fmt.Sprintf("%d MiB free for %s", n>>20, env.Data)
	switch {
	case n < tightBytes:
		return fail(reason, "make room, or choose another --data-dir")
	case n < roomyBytes:
		return warn(reason+"; building packs needs 1 GiB", "make room, or choose another --data-dir")
	default:
		return ok(reason)
	}
}

// cause is err with the path in front of the reason.
func cause(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Path + ": " + e.Err.Error()
	}
	return err.Error()
}
