package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// qemuProgram is QEMU's name in PATH.
const qemuProgram = "qemu-system-x86_64"

// kernelArgs is the kernel command line of the machine.
//
// A stall or a soft lockup panics, a panic reboots at once, and QEMU is told to
// exit instead of rebooting. nohz=off and highres=off keep a periodic tick: QEMU
// can lose an interrupt while it enters or leaves a nested guest, and a one-shot
// timer that is lost is lost for good. quiet saves seconds of serial output.
const kernelArgs = "console=ttyS0 quiet panic=-1 mitigations=off nohz=off highres=off " +
	"softlockup_panic=1 sysctl.kernel.panic_on_rcu_stall=1 emberd.role=machine"

// qemuArgs is QEMU's command line. The agent's port is the file descriptor 3.
//
// The first line is the one form in which nested emulation was found stable:
// one CPU, because with two the machine's kernel is corrupted or locks up.
func (m Machine) qemuArgs(vmlinuz string) []string {
	return []string{
		"-M", "q35", "-accel", "tcg,tb-size=512", "-cpu", "EPYC,+svm,+npt", "-smp", "1", "-m", "6G",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-name", "emberd-" + m.Name,
		"-kernel", vmlinuz, "-initrd", m.initramfs(), "-append", kernelArgs,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=agent,fd=3",
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=emberd.agent",
		"-drive", "if=none,id=system,format=raw,readonly=on,file=" + optionValue(m.systemDisk()),
		"-device", "virtio-blk-pci,drive=system",
		// The host's page cache outlives QEMU, and a host that crashes costs no
		// more than a disk that can be made again.
		"-drive", "if=none,id=data,format=raw,cache=unsafe,discard=unmap,file=" + optionValue(m.dataDisk()),
		"-device", "virtio-blk-pci,drive=data",
	}
}

// optionValue quotes s as a value in a list of QEMU options.
func optionValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// qemu is a running QEMU process.
type qemu struct {
	cmd *exec.Cmd
	// port is this side of the machine's virtio-serial port.
	port net.Conn
	// exited is closed when the process has ended; err then says how.
	exited chan struct{}
	err    error
}

// startQEMU starts the machine's QEMU, which dies with this process. What it
// and the machine's console print goes to console. The caller calls kill.
func (m Machine) startQEMU(vmlinuz string, console io.Writer) (*qemu, error) {
	port, remote, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	defer func() { _ = remote.Close() }()
	cmd := exec.Command(qemuProgram, m.qemuArgs(vmlinuz)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{remote}
	// The signal comes when the thread that started QEMU ends. The runtime ends
	// threads only with goroutines that are locked to them, and here is none.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_ = port.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	q := &qemu{cmd: cmd, port: port, exited: make(chan struct{})}
	go func() {
		defer close(q.exited)
		q.err = fmt.Errorf("QEMU ended: %w", endOf(cmd.Wait()))
	}()
	return q, nil
}

func endOf(err error) error {
	if err == nil {
		return errors.New("the machine powered off or its kernel panicked")
	}
	return err
}

func (q *qemu) pid() int { return q.cmd.Process.Pid }

// kill ends QEMU and returns when it is gone.
func (q *qemu) kill() {
	// It fails only for a process that is gone already.
	_ = q.cmd.Process.Kill()
	<-q.exited
	_ = q.port.Close()
}

// wait returns when QEMU has ended or ctx has.
func (q *qemu) wait(ctx context.Context) {
	select {
	case <-q.exited:
	case <-ctx.Done():
	}
}

// socketpair returns two connected stream sockets, the second one as a file
// that can be passed to a child.
func socketpair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near end"), os.NewFile(uintptr(fds[1]), "far end")
	defer func() { _ = near.Close() }()
	conn, err := net.FileConn(near)
	if err != nil {
		_ = far.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return conn, far, nil
}
