package systemd

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("SYSTEMD_TEST_CHILD") != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// child is a service. It prints what it was given, serves one connection on each
// socket, and says that it is ready.
func child() int {
	m, err := FromEnvironment()
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println(m != nil, "hears", m.Listens(), m.Watchdog())
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if value, set := os.LookupEnv(name); set {
			fmt.Println("left:", name, value)
		}
	}
	for _, s := range m.Sockets() {
		flags, err := unix.FcntlInt(s.File.Fd(), unix.F_GETFD, 0)
		l, listens := net.FileListener(s.File)
		fmt.Println(s.Name, flags == unix.FD_CLOEXEC, err, "listens", listens)
		conn, err := l.Accept()
		if err == nil {
			_, err = fmt.Fprint(conn, "served by ", s.Name)
			_ = conn.Close()
		}
		fmt.Println(err)
	}
	fmt.Println(m.Notify("READY=1", "STATUS=fine"))
	return 0
}

// start runs a child with the environment of setup, a shell command.
func start(t *testing.T, setup string, files ...*os.File) *exec.Cmd {
	t.Helper()
	// Only the process itself knows its pid before exec.
	cmd := exec.Command("sh", "-c", setup+` SYSTEMD_TEST_CHILD=1 exec "$0"`, os.Args[0])
	cmd.ExtraFiles = files
	return cmd
}

func TestFromEnvironment(t *testing.T) {
	for _, tt := range []struct{ setup, want string }{
		{"", "false hears false 0s\n<nil>\n"},
		{"WATCHDOG_USEC=1000000 WATCHDOG_PID=$$ NOTIFY_SOCKET=@nobody-there", "true hears true 1s\nnotify the service manager: connection refused"},
		{"WATCHDOG_USEC=1000000 WATCHDOG_PID=1 NOTIFY_SOCKET=@nobody-there", "true hears true 0s\n"},
		{"LISTEN_PID=1 LISTEN_FDS=2", "false hears false 0s\n<nil>\n"},
		{"LISTEN_PID=$$ LISTEN_FDS=x", "error: environment variable LISTEN_FDS"},
		{"WATCHDOG_USEC=-1", "error: environment variable WATCHDOG_USEC"},
	} {
		out, _ := start(t, tt.setup).Output()
		if !strings.HasPrefix(string(out), tt.want) || strings.Contains(string(out), "left:") {
			t.Errorf("%q: got %q, want %q", tt.setup, out, tt.want)
		}
	}
}

// TestPassedSockets is a parent that listens for a service.
func TestPassedSockets(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	local, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	notified := fake(t, filepath.Join(t.TempDir(), "notify"))
	var files []*os.File
	for _, l := range []net.Listener{tcp, local} {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	cmd := start(t, "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=one: NOTIFY_SOCKET="+notified.LocalAddr().String(), files...)
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i, l := range []net.Listener{tcp, local} {
		conn, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if want := []string{"served by one", "served by unknown"}[i]; string(got) != want || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		conn.Close()
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	want := "true hears true 0s\none true <nil> listens <nil>\n<nil>\nunknown true <nil> listens <nil>\n<nil>\n<nil>\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if got, _ := receive(t, notified); got != "READY=1\nSTATUS=fine" {
		t.Errorf("told %q", got)
	}
}

// TestStore gives a socket away, closes it, and connects to it.
func TestStore(t *testing.T) {
	notified := fake(t, "@emberd-test-store")
	m := At("@emberd-test-store", 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Store("web", l.(*net.TCPListener)); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	got, fds := receive(t, notified)
	if got != "FDSTORE=1\nFDNAME=web" || len(fds) != 1 {
		t.Fatalf("told %q with %d sockets", got, len(fds))
	}
	stored := os.NewFile(uintptr(fds[0]), "web")
	defer stored.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("the socket did not outlive its owner: %v", err)
	}
	conn.Close()
	if err := m.Forget("web"); err != nil {
		t.Fatal(err)
	}
	if got, _ := receive(t, notified); got != "FDSTOREREMOVE=1\nFDNAME=web" {
		t.Errorf("told %q", got)
	}
}

// Nobody started this process, and everything works all the same.
func TestNoManager(t *testing.T) {
	var m *Manager
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if m.Listens() || m.Watchdog() != 0 || m.Sockets() != nil || m.Notify("READY=1") != nil ||
		m.Store("x", l.(*net.TCPListener)) != nil || m.Forget("x") != nil {
		t.Error("a process that nobody started was told something, or told somebody")
	}
}

// fake listens where a service manager does.
func fake(t *testing.T, address string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) (text string, fds []int) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, got...)
	}
	return string(b[:n]), fds
}
