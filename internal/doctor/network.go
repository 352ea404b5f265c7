package doctor

import (
	"context"
	"io/fs"
	"path"
	"strings"

	"github.com/emberd/emberd/internal/kernel"
)

// checkNetwork asks whether a sandbox can be given a network interface. A host
// where it cannot runs all the others.
func checkNetwork(_ context.Context, env Env, kvm KVM) Result {
	if !kvm.Usable {
		return ok(notHere)
	}
	var missing []string
	have, known := hostModules(env)
	for _, name := range kernel.NetworkModules() {
		if _, err := fs.Stat(env.Host, path.Join("sys/module", name)); err != nil && !have[name] {
			missing = append(missing, name)
		}
	}
	remedy := "sudo modprobe -a " + strings.Join(missing, " ") + ", or a kernel that has them"
	switch {
	case !isDevice(env.Host, "dev/net/tun"):
		return warn("there is no /dev/net/tun, so no sandbox can have egress", "sudo modprobe tun")
	case len(missing) > 0 && !known:
		return unknown("the kernel does not say whether it has " + strings.Join(missing, ", ") + ", without which no sandbox can have egress")
	case len(missing) > 0:
		return warn("the kernel lacks "+strings.Join(missing, ", ")+", so no sandbox can have egress", remedy)
	}
	return ok("there is TUN, and what egress needs of nftables")
}

// hostModules returns the modules that the kernel has built in or can load, and
// whether that is known: a kernel can run without the files that say so.
func hostModules(env Env) (have map[string]bool, known bool) {
	have = make(map[string]bool)
	dir := path.Join("lib/modules", text(env, "proc/sys/kernel/osrelease"))
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		b, err := fs.ReadFile(env.Host, path.Join(dir, list))
		known = known || err == nil
		for line := range strings.Lines(string(b)) {
			file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			name, _, _ := strings.Cut(path.Base(file), ".ko")
			have[strings.ReplaceAll(name, "-", "_")] = true
		}
	}
	return have, known
}
