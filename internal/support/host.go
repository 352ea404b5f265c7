package support

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// hostFiles are what a host says of itself.
var hostFiles = []string{
	"etc/os-release", "proc/cmdline", "proc/meminfo", "proc/swaps", "proc/loadavg", "proc/uptime",
	"proc/pressure/cpu", "proc/pressure/memory", "proc/pressure/io",
	"proc/self/mountinfo", "proc/self/cgroup", "proc/self/limits",
	"sys/fs/cgroup/cgroup.controllers", "sys/fs/cgroup/cgroup.subtree_control",
	"sys/devices/system/cpu/online", "sys/devices/system/cpu/smt/active", "sys/kernel/mm/ksm/run",
	"sys/module/kvm_intel/parameters/nested", "sys/module/kvm_amd/parameters/nested",
}

// hostFacts is what a host says of itself.
func hostFacts(host fs.FS) ([]byte, error) {
	var b bytes.Buffer
	for _, name := range hostFiles {
		if text := hostFile(host, name); text != "" {
			fmt.Fprintf(&b, "== /%s\n%s\n", name, text)
		}
	}
	fmt.Fprintf(&b, "== /proc/cpuinfo, the first processor\n%s\n", firstProcessor(hostFile(host, "proc/cpuinfo")))
	const dir = "sys/devices/system/cpu/vulnerabilities"
	entries, _ := fs.ReadDir(host, dir)
	for _, entry := range entries {
		fmt.Fprintf(&b, "== /%s/%s\n%s\n", dir, entry.Name(), hostFile(host, dir+"/"+entry.Name()))
	}
	return b.Bytes(), nil
}

// hostFile is the text of a file of the host, "" if there is none.
func hostFile(host fs.FS, name string) string {
	b, _ := fs.ReadFile(host, name)
	return string(b)
}

func firstProcessor(cpuinfo string) string {
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	return first
}
