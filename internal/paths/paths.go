// Package paths knows where emberd keeps things: every path on disk that two
// packages have to agree on is made here.
//
// There are two roots. The data directory (by default /var/lib/emberd) holds
// what was fetched or built and survives a reboot; the run directory (by
// default /run/emberd) holds what describes processes that are alive and goes
// with them. The package makes names only; it never touches the disk.
package paths

import "path/filepath"

// The roots a daemon and its CLI use when told nothing else.
const (
	DefaultData = "/var/lib/emberd"
	DefaultRun  = "/run/emberd"
)

// DefaultConfig is the file that a daemon which was told of no other reads its
// settings from, if it is there.
const DefaultConfig = "/etc/emberd/emberd.toml"

// UserLocks is where the daemons of a host, whatever their own directories are,
// lock the user ids that they give to VMMs.
const UserLocks = DefaultRun + "/users"

// Data is the data directory.
type Data string

func (d Data) in(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// Firecracker is the VMM's executable, Jailer the one that confines it. Both
// are of the same release.
func (d Data) Firecracker() string { return d.in("firecracker", "firecracker") }

// Jailer is the executable that starts [Data.Firecracker].
func (d Data) Jailer() string { return d.in("firecracker", "jailer") }

// GuestKernel is the directory of the kernel of sandboxes, and of what belongs
// to it.
func (d Data) GuestKernel() string { return d.in("kernel", "guest") }

// Vmlinux is the guest kernel as Firecracker boots it, an uncompressed ELF.
func (d Data) Vmlinux() string { return d.in("kernel", "guest", "vmlinux") }

// GuestModules is the directory of the guest kernel's modules, laid out as in
// /lib/modules/VERSION.
func (d Data) GuestModules() string { return d.in("kernel", "guest", "modules") }

// MachineKernel is the directory of the machine's kernel, and of what belongs to
// it.
func (d Data) MachineKernel() string { return d.in("kernel", "machine") }

// Vmlinuz is the machine's kernel as QEMU boots it, a bzImage.
func (d Data) Vmlinuz() string { return d.in("kernel", "machine", "vmlinuz") }

// MachineModules is the directory of the machine's modules, laid out like
// [Data.GuestModules].
func (d Data) MachineModules() string { return d.in("kernel", "machine", "modules") }

// GuestInitramfs is the initramfs of sandboxes.
func (d Data) GuestInitramfs() string { return d.in("kernel", "initramfs.cpio") }

// Packs is the directory of built packs, one folder each.
func (d Data) Packs() string { return d.in("packs") }

// PackRootfs is the root filesystem image of a built pack.
func (d Data) PackRootfs(pack string) string { return d.in("packs", pack, "rootfs.squashfs") }

// PackManifest describes a built pack.
func (d Data) PackManifest(pack string) string { return d.in("packs", pack, "manifest.json") }

// Templates is where snapshots are kept that microVMs are restored from, on the
// filesystem of the jails.
func (d Data) Templates() string { return d.in("templates") }

// Jails is where the jailer makes its chroots. It shares a filesystem with the
// kernel and the packs, so that a chroot holds hard links instead of copies.
func (d Data) Jails() string { return d.in("jail") }

// Machine is where the disks of the machine are kept.
func (d Data) Machine() string { return d.in("machine") }

// Keys is the file of the API keys, as hashes.
func (d Data) Keys() string { return d.in("keys.json") }

// Audit is the file of what sandboxes were allowed and refused to reach. The one
// before it is beside it.
func (d Data) Audit() string { return d.in("audit.jsonl") }

// Run is the run directory.
type Run string

func (r Run) in(elem ...string) string {
	return filepath.Join(append([]string{string(r)}, elem...)...)
}

// Lock is held by the one daemon that uses this run directory.
func (r Run) Lock() string { return r.in("emberd.lock") }

// Probe is written and removed by a daemon that checks whether it could write a
// record.
func (r Run) Probe() string { return r.in("probe") }

// Socket is where the daemon serves its API to this host.
func (r Run) Socket() string { return r.in("emberd.sock") }

// Sandboxes is the directory of sandbox records, one file each.
func (r Run) Sandboxes() string { return r.in("sandboxes") }

// Answered is where the records of sandboxes are that are gone, as long as the
// request for them is remembered.
func (r Run) Answered() string { return r.in("answered") }

// VMs is the directory of what finds each microVM again, one file each.
func (r Run) VMs() string { return r.in("vms") }

// Machine is the directory of the running machine called name.
func (r Run) Machine(name string) string { return r.in("machine", name) }
