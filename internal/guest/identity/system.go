package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	agentv1 "github.com/emberd/emberd/api/agent/v1"
	"github.com/emberd/emberd/internal/guest/boot"
)

// bootIDFile is what stands for the kernel's boot id, which cannot be changed.
const (
	kernelBootID = "proc/sys/kernel/random/boot_id"
	bootIDFile   = "run/emberd/boot_id"
)

// system is the VM's system; root is "/" in a VM.
type system struct {
	root          string
	bootIDMounted bool
}

// reseed mixes the host's bytes into the kernel's generator, and has it use
// them at once: the bytes of a snapshot's generator are known to all of its
// clones.
func (s *system) reseed(id *agentv1.Arm) error {
	random, err := os.OpenFile(filepath.Join(s.root, "dev/urandom"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = random.Close() }()
	pool := poolInfo{size: int32(len(id.GetEntropy()))}
	copy(pool.bytes[:], id.GetEntropy())
	pool.bits = pool.size * 8
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, random.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool))) //nolint:gosec // there is no wrapper
	runtime.KeepAlive(&pool)
	if errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if err := unix.IoctlSetInt(int(random.Fd()), rndReseed, 0); err != nil {
		return fmt.Errorf("use it: %w", err)
	}
	return nil
}

// rndReseed is RNDRESEEDCRNG, _IO('R', 7).
const rndReseed = 'R'<<8 | 7

// poolInfo is the kernel's struct rand_pool_info.
type poolInfo struct {
	bits, size int32
	bytes      [maxEntropy]byte
}

func (s *system) setClock(id *agentv1.Arm) error {
	now := unix.NsecToTimespec(id.GetClockUnixNs())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
}

func (s *system) setHostname(id *agentv1.Arm) error {
	if err := unix.Sethostname([]byte(id.GetHostname())); err != nil {
		return err
	}
	return s.nameHost(id.GetHostname())
}

// nameHost writes the name where programs look for it.
func (s *system) nameHost(name string) error {
	if err := s.write("etc/hostname", name+"\n"); err != nil {
		return err
	}
	return s.write("etc/hosts", "127.0.0.1 localhost "+name+"\n::1 localhost\n")
}

func (s *system) writeMachineID(id *agentv1.Arm) error {
	return s.write("etc/machine-id", fmt.Sprintf("%x\n", version4(id.GetMachineId())))
}

// replaceBootID covers the kernel's boot id with a file.
func (s *system) replaceBootID(id *agentv1.Arm) error {
	b := version4(id.GetBootId())
	text := fmt.Sprintf("%x-%x-%x-%x-%x\n", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	if err := s.write(bootIDFile, text); err != nil {
		return err
	}
	if s.bootIDMounted {
		return nil
	}
	const flags = unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	target := filepath.Join(s.root, kernelBootID)
	if err := unix.Mount(filepath.Join(s.root, bootIDFile), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := unix.Mount("", target, "", flags|unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	s.bootIDMounted = true
	return nil
}

func (s *system) limitDisk(id *agentv1.Arm) error { return boot.LimitFiles(int(id.GetDiskMib())) }

func (s *system) limitProcesses(id *agentv1.Arm) error { return boot.LimitProcesses(int(id.GetPids())) }

// write makes the file called name, which everybody may read, hold text.
func (s *system) write(name, text string) error {
	path := filepath.Join(s.root, name)
	err := os.WriteFile(path, []byte(text), 0o644) //nolint:gosec // for all to see
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // for all to see
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644) //nolint:gosec // for all to see
}

// version4 returns random in the form of a random UUID.
func version4(random []byte) []byte {
	id := append([]byte(nil), random...)
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}
