package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/x/command"
)

// Host is what a template depends on beside its files: the state of a CPU and of
// a VMM fit no other.
type Host struct {
	// Firecracker is the release, SnapshotFormat the version of its snapshots.
	Firecracker    string `json:"firecracker"`
	SnapshotFormat string `json:"snapshot_format"`
	// CPU is the model of the processor with a digest of its features.
	CPU string `json:"cpu"`
	// Kernel is the release of the host's kernel.
	Kernel string `json:"kernel"`
}

// ThisHost looks at this host. executable is Firecracker, of that release.
func ThisHost(ctx context.Context, executable, release string) (Host, error) {
	h := Host{Firecracker: release}
	format, err := command.Run(ctx, executable, "--snapshot-version")
	if err != nil {
		return Host{}, fmt.Errorf("snapshot format: %w", err)
	}
	// What else it logs comes behind.
	h.SnapshotFormat, _, _ = strings.Cut(strings.TrimSpace(string(format)), "\n")
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return Host{}, err
	}
	h.CPU = cpuModel(string(cpus))
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Host{}, fmt.Errorf("host kernel: %w", err)
	}
	h.Kernel = unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Version[:])
	return h, nil
}

// cpuModel is what of /proc/cpuinfo a guest depends on, of all CPUs: some hosts
// have two kinds.
func cpuModel(cpuinfo string) string {
	var name string
	var models []string
	for cpu := range strings.SplitSeq(strings.TrimSpace(cpuinfo), "\n\n") {
		var model []string
		for line := range strings.Lines(cpu) {
			field, value, _ := strings.Cut(line, ":")
			field, value = strings.TrimSpace(field), strings.TrimSpace(value)
			switch field {
			case "model name":
				name = value
				fallthrough
			case "vendor_id", "cpu family", "model", "stepping", "microcode", "flags":
				model = append(model, field+"="+value)
			}
		}
		models = append(models, strings.Join(model, "\n"))
	}
	slices.Sort(models)
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(models), "\n\n")))
	return name + " " + hex.EncodeToString(sum[:8])
}

// Key is everything that a template depends on. Two templates of one key are
// interchangeable, and one of another key must not be restored.
type Key struct {
	Host Host         `json:"host"`
	Size sandbox.Size `json:"size"`
	// The SHA-256 of the files that the VM was booted from. The agent is in the
	// initramfs.
	Kernel    string `json:"kernel"`
	Initramfs string `json:"initramfs"`
	Rootfs    string `json:"rootfs"`
	BootArgs  string `json:"boot_args"`
	// Network says that the VM has a network interface, whatever that may reach.
	Network bool `json:"network,omitempty"`
	// Format is that of the template itself.
	Format int `json:"format"`
}

// format is raised when templates of before can no longer be used.
const format = 2

// ID names the templates of the key.
func (k Key) ID() string {
	b, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings and numbers can be marshalled
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
