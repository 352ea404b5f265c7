package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/source"
)

const (
	intel = "processor\t: 0\nflags\t\t: fpu vme vmx ssse3\n"
	amd   = "processor\t: 0\nflags\t\t: fpu vme svm ssse3\n"
	// The name of a flag may be part of another's.
	plain   = "processor\t: 0\nmodel name\t: svm vmx\nflags\t\t: fpu vmxe svm_lock\n"
	machine = "console=ttyS0 quiet emberd.role=machine\n"
)

func host(cpuinfo, cmdline string, kvmDevice bool) fstest.MapFS {
	h := fstest.MapFS{
		"proc/cpuinfo":                     {Data: []byte(cpuinfo)},
		"proc/cmdline":                     {Data: []byte(cmdline)},
		"sys/fs/cgroup/cgroup.controllers": {Data: []byte("cpuset cpu io memory pids\n")},

		"sys/devices/system/cpu/vulnerabilities/meltdown": {Data: []byte("Not affected\n")},
		"sys/devices/system/cpu/vulnerabilities/retbleed": {Data: []byte("Mitigation: untrained return thunk; SMT disabled\n")},
		"sys/devices/system/cpu/smt/active":               {Data: []byte("0\n")},
		"sys/kernel/mm/ksm/run":                           {Data: []byte("0\n")},
		"proc/sys/kernel/osrelease":                       {Data: []byte("6.1\n")},
		"lib/modules/6.1/modules.builtin":                 {Data: []byte("kernel/drivers/net/tun.ko\n")},
		"lib/modules/6.1/modules.dep": {Data: []byte("kernel/net/netfilter/nf_tables.ko.xz: kernel/net/netfilter/nfnetlink.ko.xz\n" +
			"kernel/net/netfilter/nft_tproxy.ko.xz:\nkernel/net/netfilter/nft-socket.ko.xz:\nkernel/net/netfilter/nft_reject_inet.ko:\nkernel/net/netfilter/nft_quota.ko.gz:\n")},
		"dev/net/tun": {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666},
		"proc/swaps":  {Data: []byte("Filename\tType\tSize\tUsed\tPriority\n")},
	}
	if kvmDevice {
		h["dev/kvm"] = &fstest.MapFile{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666}
	}
	return h
}

func TestDetectKVM(t *testing.T) {
	tests := map[string]struct {
		host   fs.FS
		want   string
		reason string
	}{
		"Intel":                      {host(intel, "", true), "hardware", "vmx"},
		"AMD":                        {host(amd, "", true), "hardware", "svm"},
		"inside the machine":         {host(amd, machine, true), "emulated", "svm"},
		"role of another name":       {host(amd, "emberd.role=machines", true), "hardware", "svm"},
		"module not loaded":          {host(intel, "", false), "none", "kvm_intel is not loaded"},
		"no virtualisation":          {host(plain, "", false), "none", "neither vmx nor svm"},
		"a device without a backing": {host(plain, "", true), "none", "whatever /dev/kvm pretends"},
		"the same in the machine":    {host(plain, machine, true), "none", "neither vmx nor svm"},
		"no /proc":                   {fstest.MapFS{}, "none", "not known"},
		"a file for a device": {
			fstest.MapFS{"proc/cpuinfo": {Data: []byte(intel)}, "dev/kvm": {}}, "none", "no /dev/kvm",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := DetectKVM(tt.host)
			if got.String() != tt.want || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("got %s (%s), want %s with %q", got, got.Reason, tt.want, tt.reason)
			}
			if got.Usable == (tt.want == "none") {
				t.Errorf("got Usable %v of %s", got.Usable, got)
			}
		})
	}
}

// healthy is a host where every check passes but those of packs, which need
// built ones.
func healthy(t *testing.T) Env {
	t.Helper()
	data := paths.Data(t.TempDir())
	for _, path := range []string{
		data.Firecracker(), data.Jailer(), data.Vmlinux(), filepath.Join(data.GuestModules(), "m"),
		data.Vmlinuz(), filepath.Join(data.MachineModules(), "m"),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	recordKernel(t, data, kernel.Record{Package: "linux-image", Version: "6.1"})
	return Env{
		Data:     data,
		Host:     host(intel, "", true),
		LookPath: func(name string) (string, error) { return "/bin/" + name, nil },
		Versions: func(context.Context, string, string) (string, error) { return recommended, nil },
		Free:     func(string) (uint64, error) { return 10 << 30, nil },

		Run:         "/run/emberd",
		Tmpfs:       func(string) (bool, error) { return true, nil },
		FileLimit:   func() (uint64, error) { return 1 << 20, nil },
		ClockSynced: func() (bool, error) { return true, nil },
	}
}

func recordKernel(t *testing.T, data paths.Data, rec kernel.Record) {
	t.Helper()
	if err := source.Write(data.GuestKernel(), rec); err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	built := kernel.Record{Package: "linux-source", Version: "6.1", Build: &kernel.Build{Release: "6.1.1-emberd"}}
	emulated := func(e *Env) { e.Host = host(amd, machine, true) }
	none := func(e *Env) { e.Host = host(plain, "", true) }
	cgroups := func(controllers string) func(*Env) {
		return func(e *Env) {
			h := host(intel, "", true)
			if controllers == "" {
				delete(h, "sys/fs/cgroup/cgroup.controllers")
			} else {
				h["sys/fs/cgroup/cgroup.controllers"].Data = []byte(controllers)
			}
			e.Host = h
		}
	}
	versions := func(v string, err error) func(*Env) {
		return func(e *Env) {
			e.Versions = func(context.Context, string, string) (string, error) { return v, err }
		}
	}
	noQEMU := func(e *Env) { e.LookPath = func(string) (string, error) { return "", errors.New("not found") } }
	free := func(n uint64) func(*Env) {
		return func(e *Env) { e.Free = func(string) (uint64, error) { return n, nil } }
	}
	file := func(name, content string) func(*Env) {
		return func(e *Env) {
			if content == "" {
				delete(e.Host.(fstest.MapFS), name)
				return
			}
			e.Host.(fstest.MapFS)[name] = &fstest.MapFile{Data: []byte(content)}
		}
	}
	const cpu = "sys/devices/system/cpu/"
	tests := []struct {
		name, check string
		change      []func(*Env)
		verdict     Verdict
		reason      string
	}{
		{"hardware", "kvm", nil, OK, "vmx"},
		{"emulated", "kvm", []func(*Env){emulated}, Warn, "slow"},
		{"no KVM", "kvm", []func(*Env){none}, Warn, "in the machine"},
		{"module", "kvm", []func(*Env){func(e *Env) { e.Host = host(amd, "", false) }}, Fail, "kvm_amd"},
		{"no QEMU needed", "machine", []func(*Env){noQEMU}, OK, "not needed"},
		{"QEMU", "machine", []func(*Env){none}, OK, "qemu"},
		{"no QEMU", "machine", []func(*Env){none, noQEMU}, Fail, "QEMU"},
		{"root", "root", nil, OK, "root"},
		{"not root", "root", []func(*Env){func(e *Env) { e.Euid = 1000 }}, Warn, "has to run as root"},
		{"root and no KVM", "root", []func(*Env){none, func(e *Env) { e.Euid = 1000 }}, OK, "not needed"},
		{"cgroup v2", "cgroups", nil, OK, "cpu, memory, pids"},
		{"cgroup v1", "cgroups", []func(*Env){cgroups("")}, Fail, "not mounted"},
		{"cgroup v1 and no KVM", "cgroups", []func(*Env){cgroups(""), none}, OK, "not needed"},
		{"no controllers", "cgroups", []func(*Env){cgroups("cpuset cpu\n")}, Fail, "memory, pids"},
		{"Firecracker", "firecracker", nil, OK, recommended},
		{"Firecracker missing", "firecracker", []func(*Env){func(e *Env) { os.Remove(e.Data.Jailer()) }}, Fail, "jailer"},
		{"Firecracker refused", "firecracker", []func(*Env){versions("", errors.New("too old"))}, Fail, "too old"},
		{"no advisories", "advisories", nil, OK, "none known"},
		{"1.12.1", "advisories", []func(*Env){versions("1.12.1", nil)}, Warn, "CVE-2026-1386"},
		{"1.15.0", "advisories", []func(*Env){versions("1.15.0", nil)}, Warn, "CVE-2026-5747"},
		{"no version", "advisories", []func(*Env){versions("", errors.New("too old"))}, Unknown, "not known"},
		{"kernel", "kernel", nil, OK, "Debian's linux-image 6.1"},
		{"built kernel", "kernel", []func(*Env){func(e *Env) { recordKernel(t, e.Data, built) }}, OK, "6.1.1-emberd, built"},
		{"no kernel", "kernel", []func(*Env){func(e *Env) { os.Remove(e.Data.Vmlinux()) }}, Fail, "vmlinux"},
		{"no kernel for the machine", "kernel", []func(*Env){none, func(e *Env) { os.Remove(e.Data.Vmlinuz()) }}, Fail, "vmlinuz"},
		{"no machine needed", "kernel", []func(*Env){func(e *Env) { os.Remove(e.Data.Vmlinuz()) }}, OK, "linux-image"},
		{"no packs", "packs", nil, Fail, "pack python is not built"},
		{"disk", "disk", nil, OK, "10240 MiB"},
		{"little room", "disk", []func(*Env){free(100 << 20)}, Warn, "100 MiB"},
		{"no room", "disk", []func(*Env){free(1 << 20)}, Fail, "1 MiB"},
		{"unknown room", "disk", []func(*Env){func(e *Env) { e.Free = func(string) (uint64, error) { return 0, errors.New("no") } }}, Unknown, "no"},
		{"run directory", "run-dir", nil, OK, "in memory"},
		{"run directory on a disk", "run-dir", []func(*Env){func(e *Env) { e.Tmpfs = func(string) (bool, error) { return false, nil } }}, Warn, "outlive"},
		{"run directory full", "run-dir", []func(*Env){free(1 << 20)}, Fail, "1024 KiB"},
		{"longest socket", "run-dir", []func(*Env){func(e *Env) { e.Run = paths.Run("/" + strings.Repeat("r", maxSocketPath-13)) }}, OK, "in memory"},
		{"long socket", "run-dir", []func(*Env){func(e *Env) { e.Run = paths.Run("/" + strings.Repeat("r", maxSocketPath-12)) }}, Fail, "108 bytes"},
		{"files", "files", nil, OK, "1048576"},
		{"few files", "files", []func(*Env){func(e *Env) { e.FileLimit = func() (uint64, error) { return 1024, nil } }}, Warn, "64 sandboxes"},
		{"mitigations", "mitigations", nil, OK, "2 weaknesses"},
		{"a weakness", "mitigations", []func(*Env){file(cpu+"vulnerabilities/mds", "Vulnerable: Clear CPU buffers attempted, no microcode\n")}, Warn, "open to mds,"},
		{"old kernel", "mitigations", []func(*Env){file(cpu+"vulnerabilities/meltdown", ""), file(cpu+"vulnerabilities/retbleed", "")}, Unknown, "does not say"},
		{"a weakness and no KVM", "mitigations", []func(*Env){none, file(cpu+"vulnerabilities/mds", "Vulnerable\n")}, OK, "not needed"},
		{"no SMT", "smt", nil, OK, "no two threads"},
		{"SMT", "smt", []func(*Env){file(cpu+"smt/active", "1\n")}, Warn, "one core"},
		{"SMT unknown", "smt", []func(*Env){file(cpu+"smt/active", "")}, Unknown, "does not say"},
		{"no swap", "swap", nil, OK, "no swap"},
		{"swap", "swap", []func(*Env){file("proc/swaps", "Filename Type\n/dev/sda2 partition\n")}, Warn, "to a disk"},
		{"no KSM", "ksm", nil, OK, "does not merge"},
		{"KSM", "ksm", []func(*Env){file("sys/kernel/mm/ksm/run", "1\n")}, Warn, "merges equal pages"},
		{"clock", "clock", nil, OK, "kept right"},
		{"no clock", "clock", []func(*Env){func(e *Env) { e.ClockSynced = func() (bool, error) { return false, nil } }}, Warn, "nothing keeps"},
		{"network", "network", nil, OK, "TUN"},
		{"no TUN", "network", []func(*Env){file("dev/net/tun", "")}, Warn, "no /dev/net/tun"},
		{"no transparent proxy", "network", []func(*Env){file("lib/modules/6.1/modules.dep", "kernel/drivers/net/tun.ko:\nkernel/net/netfilter/nf_tables.ko.zst:\n")}, Warn, "lacks nft_tproxy, nft_socket, nft_reject_inet, nft_quota,"},
		{"loaded is enough", "network", []func(*Env){file("lib/modules/6.1/modules.dep", ""), file("sys/module/nft_tproxy/refcnt", "0"), file("sys/module/nft_socket/refcnt", "0"), file("sys/module/nft_reject_inet/refcnt", "0"), file("sys/module/nft_quota/refcnt", "0"), file("sys/module/nf_tables/refcnt", "0")}, OK, "TUN"},
		{"no list of modules", "network", []func(*Env){file("lib/modules/6.1/modules.dep", ""), file("lib/modules/6.1/modules.builtin", "")}, Unknown, "whether it has tun, nf_tables"},
		{"nothing left", "leftovers", nil, OK, "none left"},
		{"a daemon runs", "leftovers", []func(*Env){file("run/emberd/emberd.lock", "42\n"), file("proc/42/comm", "emberd\n"), file("run/emberd/sandboxes/sb_1.json", "{}")}, OK, "pid 42) with 1 sandboxes"},
		{"a daemon died", "leftovers", []func(*Env){file("run/emberd/emberd.lock", "42\n"), file("run/emberd/sandboxes/sb_1.json", "{}")}, Warn, "1 records of sandboxes and 0 jails"},
		{"another has its pid", "leftovers", []func(*Env){file("run/emberd/emberd.lock", "42\n"), file("proc/42/comm", "bash\n"), file("run/emberd/sandboxes/sb_1.json", "{}")}, Warn, "no emberd runs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			env := healthy(t)
			for _, change := range tt.change {
				change(&env)
			}
			for _, r := range Run(t.Context(), env) {
				if r.Verdict == Fail && r.Remedy == "" {
					t.Errorf("%s fails without a remedy", r.Name)
				}
				if r.Name != tt.check {
					continue
				}
				if r.Verdict != tt.verdict || !strings.Contains(r.Reason, tt.reason) {
					t.Errorf("got %s (%s), want %s with %q", r.Verdict, r.Reason, tt.verdict, tt.reason)
				}
			}
		})
	}
}

// The manual names every check there is.
func TestChecksAreExplained(t *testing.T) {
	manual, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		if !strings.Contains(string(manual), "`"+c.name+"`") {
			t.Errorf("%s is not explained", c.name)
		}
	}
}

func TestAdvisories(t *testing.T) {
	tests := map[string]int{
		"1.12.1": 2, // the jailer, and its line has ended
		"1.13.1": 3,
		"1.13.2": 2,
		"1.14.0": 3,
		"1.14.4": 1,
		"1.15.0": 1,
		"1.15.1": 0,
		"1.16.0": 1,
		"1.16.1": 0,
		"1.17.0": 0,
	}
	for text, want := range tests {
		v, err := parseVersion(text)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for _, a := range advisories {
			if a.affects(v) {
				got++
			}
		}
		if got != want {
			t.Errorf("%s: got %d advisories, want %d", text, got, want)
		}
	}
	if _, err := parseVersion("one"); err == nil {
		t.Error(`"one" is a version`)
	}
}

func TestFree(t *testing.T) {
	here := t.TempDir()
	want, err := free(here)
	if err != nil || want == 0 {
		t.Fatalf("got %d, %v", want, err)
	}
	if _, err := free(filepath.Join(here, "not", "there", "yet")); err != nil {
		t.Errorf("a directory that does not exist yet: %v", err)
	}
}
