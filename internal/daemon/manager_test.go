package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/x/systemd"
)

// serviceManager is as much of systemd as a daemon notices: it hears what it is
// told, and keeps sockets between one daemon and the next.
type serviceManager struct {
	t    *testing.T
	conn *net.UnixConn

	mu     sync.Mutex
	told   []string
	stored map[string]*os.File
}

func newServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &serviceManager{t: t, conn: conn, stored: make(map[string]*os.File)}
	var hearing sync.WaitGroup
	hearing.Go(m.hear)
	t.Cleanup(func() {
		_ = conn.Close()
		hearing.Wait()
		for _, f := range m.stored {
			_ = f.Close()
		}
	})
	return m
}

func (m *serviceManager) hear() {
	for {
		b, oob := make([]byte, 4096), make([]byte, 4096)
		n, oobn, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		var fds []int
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for _, c := range messages {
			got, _ := unix.ParseUnixRights(&c)
			fds = append(fds, got...)
		}
		lines := strings.Split(string(b[:n]), "\n")
		m.mu.Lock()
		m.told = append(m.told, lines...)
		if name, ok := strings.CutPrefix(lines[len(lines)-1], "FDNAME="); ok {
			if old := m.stored[name]; old != nil {
				_ = old.Close()
				delete(m.stored, name)
			}
			if len(fds) == 1 {
				m.stored[name] = os.NewFile(uintptr(fds[0]), name)
			}
		}
		m.mu.Unlock()
	}
}

// start is the manager as a daemon has it that is started now.
func (m *serviceManager) start(watchdog time.Duration) *systemd.Manager {
	m.mu.Lock()
	defer m.mu.Unlock()
	var sockets []systemd.Socket
	for name, f := range m.stored {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		sockets = append(sockets, systemd.Socket{Name: name, File: os.NewFile(uintptr(fd), name)})
	}
	return systemd.At(m.conn.LocalAddr().String(), watchdog, sockets...)
}

// count is how often the manager was told that.
func (m *serviceManager) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, s := range m.told {
		if s == what {
			n++
		}
	}
	return n
}

func (m *serviceManager) names() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.stored)
}

// begin runs the daemon of cfg until end is called.
func begin(t *testing.T, cfg Config) (d *Daemon, end func()) {
	t.Helper()
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()
	return d, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestWatchdog checks what the service manager hears, and that it hears nothing
// while something is broken.
func TestWatchdog(t *testing.T) {
	m := newServiceManager(t)
	cfg := fakeConfig(t)
	cfg.Socket = cfg.RunDir.Socket()
	const within = 150 * time.Millisecond
	cfg.Manager = m.start(within)
	_, end := begin(t, cfg)
	await(t, "signs of life", func() bool { return m.count("WATCHDOG=1") > 3 })
	if m.count("READY=1") != 1 || m.count("STOPPING=1") != 0 {
		t.Errorf("told %q", m.told)
	}

	// A directory where the record of the check would be.
	broken := filepath.Join(cfg.RunDir.Probe(), "x")
	if err := os.MkdirAll(broken, 0o700); err != nil {
		t.Fatal(err)
	}
	time.Sleep(within) // for what was about to be said
	before := m.count("WATCHDOG=1")
	time.Sleep(3 * within)
	if n := m.count("WATCHDOG=1"); n != before {
		t.Errorf("%d signs of life of a daemon that cannot write a record", n-before)
	}
	if err := os.RemoveAll(cfg.RunDir.Probe()); err != nil {
		t.Fatal(err)
	}
	await(t, "signs of life again", func() bool { return m.count("WATCHDOG=1") > before })

	// Nobody answers by the socket.
	if err := os.Rename(cfg.Socket, cfg.Socket+".away"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(within)
	before = m.count("WATCHDOG=1")
	time.Sleep(3 * within)
	if n := m.count("WATCHDOG=1"); n != before {
		t.Errorf("%d signs of life of a daemon that does not answer", n-before)
	}
	end()
	if m.count("STOPPING=1") != 1 {
		t.Errorf("told %q", m.told)
	}
}

// TestRestartRefusesNobody has clients connect, 50 a second, while one daemon
// ends and another begins: each gets an answer. In between, they wait.
func TestRestartRefusesNobody(t *testing.T) {
	m := newServiceManager(t)
	cfg := fakeConfig(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen, cfg.Socket = free.Addr().String(), cfg.RunDir.Socket()
	_ = free.Close()
	cfg.Manager = m.start(0)
	_, end := begin(t, cfg)

	done := make(chan struct{})
	var clients sync.WaitGroup
	var mu sync.Mutex
	var served int
	for _, addr := range []string{cfg.Listen, client.UnixScheme + cfg.Socket} {
		clients.Go(func() {
			tick := time.NewTicker(40 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				clients.Go(func() {
					err := getOnce(t.Context(), addr)
					mu.Lock()
					defer mu.Unlock()
					served++
					if err != nil {
						t.Errorf("%s: %v", addr, err)
					}
				})
			}
		})
	}
	for i := range 3 {
		await(t, "the daemon to be ready", func() bool { return m.names() == 2 && m.count("READY=1") == i+1 })
		end()
		time.Sleep(300 * time.Millisecond) // nobody is there
		cfg.Manager = m.start(0)
		_, end = begin(t, cfg)
	}
	close(done)
	clients.Wait()
	end()
	if served < 40 {
		t.Errorf("%d requests only", served)
	}
	t.Logf("%d requests over 3 restarts", served)
}

// getOnce asks for the sandboxes on a connection of its own.
func getOnce(ctx context.Context, addr string) error {
	network, host := "tcp", addr
	if path, local := strings.CutPrefix(addr, client.UnixScheme); local {
		network, host = "unix", path
	}
	hc := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, host)
		},
	}}
	target := "http://localhost/sandboxes"
	if network == "tcp" {
		target = "http://" + addr + "/sandboxes"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", res.Status)
	}
	return nil
}

// TestInherited checks what a daemon makes of the sockets that it is passed.
func TestInherited(t *testing.T) {
	m := newServiceManager(t)
	cfg := fakeConfig(t)
	cfg.Listen, cfg.Socket = "127.0.0.1:0", cfg.RunDir.Socket()
	cfg.Manager = m.start(0)
	d, end := begin(t, cfg)
	await(t, "both listeners to be stored", func() bool { return m.names() == 2 })
	old := d.Addr()
	end()
	if _, err := os.Lstat(cfg.Socket); err != nil {
		t.Errorf("the socket's path: %v", err)
	}

	// Another address, and a path that somebody removed: the old ones go.
	if err := os.Remove(cfg.Socket); err != nil {
		t.Fatal(err)
	}
	cfg.Manager = m.start(0)
	d, end = begin(t, cfg)
	if d.Addr() == old {
		t.Error("a listener was taken that the settings do not name")
	}
	await(t, "new listeners to be stored", func() bool { return m.count("FDSTORE=1") == 4 && m.names() == 2 })
	if err := getOnce(t.Context(), old); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the old address: %v", err)
	}
	if err := client.New(client.UnixScheme + cfg.Socket).Ready(t.Context()); err != nil {
		t.Error(err)
	}
	end()

	// No TCP any more.
	last := d.Addr()
	cfg.Listen = ""
	cfg.Manager = m.start(0)
	_, end = begin(t, cfg)
	await(t, "the listener to be forgotten", func() bool { return m.names() == 1 })
	if err := getOnce(t.Context(), last); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the address that was closed: %v", err)
	}
	end()

	// A socket unit's listener that the settings do not name is refused.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	cfg.Socket += ".other"
	cfg.Manager = systemd.At("", 0, systemd.Socket{Name: "emberd.socket", File: f})
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "neither listen nor socket") {
		t.Errorf("got %v", err)
	}
}

func TestSameAddress(t *testing.T) {
	for _, tt := range []struct {
		at   net.Addr
		want string
		same bool
	}{
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7777}, "127.0.0.1:7777", true},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7777}, "127.0.0.1:7778", false},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7777}, "127.0.0.1:0", false},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7777}, "0.0.0.0:7777", false},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 7777}, ":7777", true},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 7777}, "0.0.0.0:7777", false},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 7777}, "[::1]:7777", true},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 7777}, "nonsense", false},
		{&net.UnixAddr{Name: "/run/x", Net: "unix"}, "/run/x", true},
		{&net.UnixAddr{Name: "/run/x", Net: "unix"}, "/run/y", false},
	} {
		if got := sameAddress(tt.at, tt.want); got != tt.same {
			t.Errorf("%v, %s: %v", tt.at, tt.want, got)
		}
	}
}
