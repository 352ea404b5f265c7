package warm_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/internal/guest/reaper"
)

// What this test binary can be besides the tests, by its first argument: the
// processes that a pack would start, for an interpreter that is /bin/sh. The
// third argument is how it misbehaves.
const (
	asZygote   = "zygote"
	asParent   = "parent" // between the zygote and a ready process
	asForked   = "forked"
	asPrestart = "prestart"
)

// dead reaps for all tests: as in PID 1 there is one reaper, which owns every
// child of this process.
var dead = reaper.NewInit()

func TestMain(m *testing.M) {
	how := ""
	if len(os.Args) > 2 {
		how = os.Args[2]
	}
	switch os.Args[1] {
	case asZygote:
		zygote(how)
	case asParent:
		start(asForked, how, []uintptr{0, 1, 2, 3}, &syscall.SysProcAttr{Setsid: true})
		os.Exit(0)
	case asForked:
		becomeReady(how, 3)
	case asPrestart:
		becomeReady(how, 63)
	}
	// What this process was given beside its streams is nothing to be compared.
	for fd := 3; fd < 1024; fd++ {
		syscall.CloseOnExec(fd)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := context.WithCancel(context.Background())
	reaping := make(chan struct{})
	go func() { dead.Run(ctx); close(reaping) }()
	code := m.Run()
	cancel()
	<-reaping
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// start starts this binary in another role and returns its process id.
func start(role, how string, files []uintptr, sys *syscall.SysProcAttr) int {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], role, how},
		&syscall.ProcAttr{Env: os.Environ(), Files: files, Sys: sys})
	if err != nil {
		os.Exit(1)
	}
	return pid
}

// zygote forks ready processes, as well as a Go program can.
func zygote(how string) {
	if how == "mute" {
		_, _ = io.Copy(io.Discard, os.NewFile(3, "control"))
	}
	for {
		request, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4*4))
		n, oob, _, _, err := unix.Recvmsg(3, request, rights, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			os.Exit(0)
		}
		if how == "quits" {
			os.Exit(1)
		}
		messages, _ := unix.ParseSocketControlMessage(rights[:oob])
		fds, _ := unix.ParseUnixRights(&messages[0])
		files := []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2]), uintptr(fds[3])}
		role := asParent
		if how == "no orphan" {
			role = asForked
		}
		pid := start(role, how, files, nil)
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		if role == asParent {
			_, _ = syscall.Wait4(pid, nil, 0, nil)
		}
	}
}

// becomeReady waits for code on the descriptor fd and becomes the shell that runs
// it.
func becomeReady(how string, fd int) {
	control := os.NewFile(uintptr(fd), "control")
	syscall.CloseOnExec(fd)
	switch how {
	case "wrong pid":
		_, _ = fmt.Fprintf(control, "R%d\n", os.Getppid())
	case "noise":
		_, _ = io.WriteString(control, strings.Repeat("noise ", 100))
	case "slow":
		time.Sleep(2500 * time.Millisecond) // longer than programs wait as a rule
		_, _ = fmt.Fprintf(control, "R%d\n", os.Getpid())
	case "never ready":
		_, _ = io.Copy(io.Discard, control)
	default:
		_, _ = fmt.Fprintf(control, "R%d\n", os.Getpid())
	}
	r := bufio.NewReader(control)
	var size uint32
	if binary.Read(r, binary.BigEndian, &size) != nil {
		os.Exit(1)
	}
	if how == "dies with the code" {
		os.Exit(1)
	}
	code := make([]byte, size)
	if _, err := io.ReadFull(r, code); err != nil {
		os.Exit(1)
	}
	if how == "never takes it" {
		select {}
	}
	answer := "G"
	if how == "wrong answer" {
		answer = "X"
	}
	_, _ = io.WriteString(control, answer)
	signal.Reset()
	_ = syscall.Exec("/bin/sh", []string{"sh", "-c", string(code)}, os.Environ())
	os.Exit(1)
}
