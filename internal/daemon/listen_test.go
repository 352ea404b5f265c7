package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/apikey"
)

// run runs the daemon of cfg until the test ends.
func run(t *testing.T, cfg Config) *Daemon {
	t.Helper()
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return d
}

func TestHosts(t *testing.T) {
	own := []string{"localhost:7777", "127.0.0.1:7777", "[::1]:7777"}
	for _, tt := range []struct {
		addr   string
		secure bool
		more   []string
		want   []string
	}{
		{"127.0.0.1:7777", false, nil, own},
		{"[::1]:7777", false, nil, own},
		{"0.0.0.0:7777", true, nil, own},
		{"[::]:7777", true, []string{"Box.example", "box.example:8080"}, slices.Concat(own, []string{"box.example", "box.example:8080"})},
		{"192.0.2.7:7777", true, nil, slices.Concat(own, []string{"192.0.2.7:7777"})},
		{"[2001:db8::7]:7777", true, nil, slices.Concat(own, []string{"[2001:db8::7]:7777"})},
		{"127.0.0.1:80", false, nil, []string{"localhost:80", "localhost", "127.0.0.1:80", "127.0.0.1", "[::1]:80", "[::1]"}},
		{"127.0.0.1:443", false, nil, []string{"localhost:443", "127.0.0.1:443", "[::1]:443"}},
		{"127.0.0.1:443", true, nil, []string{"localhost:443", "localhost", "127.0.0.1:443", "127.0.0.1", "[::1]:443", "[::1]"}},
	} {
		if got := hosts(netip.MustParseAddrPort(tt.addr), tt.secure, tt.more); !slices.Equal(got, tt.want) {
			t.Errorf("%s %v: got %q, want %q", tt.addr, tt.secure, got, tt.want)
		}
	}
}

// TestOtherHosts checks what it takes to listen where other hosts can connect.
func TestOtherHosts(t *testing.T) {
	pair := writeCertificate(t, t.TempDir(), 1)
	for _, tt := range []struct {
		name            string
		listen          string
		keys            int
		tls             TLSFiles
		insecure, wants bool
	}{
		{name: "loopback", listen: "127.0.0.1:0", wants: true},
		{name: "loopback by name", listen: "localhost:0", wants: true},
		{name: "nothing", listen: "0.0.0.0:0"},
		{name: "no address", listen: ":0"},
		{name: "IPv6", listen: "[::]:0"},
		{name: "keys alone", listen: "0.0.0.0:0", keys: 1},
		{name: "TLS alone", listen: "0.0.0.0:0", tls: pair},
		{name: "keys that were all revoked", listen: "0.0.0.0:0", keys: -1, tls: pair},
		{name: "both", listen: "0.0.0.0:0", keys: 1, tls: pair, wants: true},
		{name: "insecure", listen: "0.0.0.0:0", insecure: true, wants: true},
		{name: "half of TLS", listen: "127.0.0.1:0", tls: TLSFiles{Cert: pair.Cert}},
		{name: "a missing certificate", listen: "127.0.0.1:0", tls: TLSFiles{Cert: "/nonexistent", Key: pair.Key}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := fakeConfig(t)
			cfg.Listen, cfg.TLS, cfg.Insecure = tt.listen, tt.tls, tt.insecure
			if tt.keys != 0 {
				createKey(t, cfg)
			}
			if tt.keys < 0 {
				revokeAll(t, cfg)
			}
			d, err := New(t.Context(), cfg)
			if started := err == nil; started != tt.wants {
				t.Errorf("started %v: %v", started, err)
			}
			if err == nil {
				_ = d.Close(t.Context())
			}
		})
	}
}

// TestTLS checks that a listener for other hosts always asks for a key, and that
// a renewed certificate is used.
func TestTLS(t *testing.T) {
	cfg := fakeConfig(t)
	dir := t.TempDir()
	cfg.TLS = writeCertificate(t, dir, 1)
	cfg.Listen = "0.0.0.0:0"
	key := createKey(t, cfg)
	d := run(t, cfg)
	_, port, err := net.SplitHostPort(d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	addr := "https://localhost:" + port
	if serial := serialOf(t, "localhost:"+port); serial != 1 {
		t.Errorf("certificate %d", serial)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	hc := client.WithHTTPClient(&http.Client{Transport: transport})
	if _, err := client.New(addr, hc, client.WithAPIKey(key)).Info(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Remove(cfg.DataDir.Keys()); err != nil {
		t.Fatal(err)
	}
	await(t, "the file of the keys to be missed", func() bool { return !d.listeners.keys.Asked() })
	if _, err := client.New(addr, hc).Info(t.Context()); codeOf(err) != "unauthorized" {
		t.Errorf("without keys and over the network: %v", err)
	}
	writeCertificate(t, dir, 2)
	if serial := serialOf(t, "localhost:"+port); serial != 2 {
		t.Errorf("certificate %d after it was renewed", serial)
	}
	if err := os.WriteFile(cfg.TLS.Cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if serial := serialOf(t, "localhost:"+port); serial != 2 {
		t.Errorf("certificate %d after a renewal that broke", serial)
	}
}

// TestKeys takes the daemon from no key to one, and to none that is left.
func TestKeys(t *testing.T) {
	cfg := fakeConfig(t)
	cfg.Socket = cfg.RunDir.Socket()
	d := run(t, cfg)
	if _, err := client.New(d.Addr()).Info(t.Context()); err != nil {
		t.Errorf("loopback without any key: %v", err)
	}
	key := createKey(t, cfg)
	await(t, "the key", d.listeners.keys.Asked)
	if _, err := client.New(d.Addr()).Info(t.Context()); codeOf(err) != "unauthorized" {
		t.Errorf("loopback without the key: %v", err)
	}
	if err := client.New(d.Addr()).Healthy(t.Context()); err != nil {
		t.Errorf("health without the key: %v", err)
	}
	holder := client.New(d.Addr(), client.WithAPIKey(key))
	id, err := holder.Create(t.Context(), "shell")
	if err != nil {
		t.Fatal(err)
	}
	socket := client.New(client.UnixScheme + cfg.Socket)
	if _, err := socket.Get(t.Context(), id); err != nil {
		t.Errorf("the socket without the key: %v", err)
	}

	// The program ends with the key that it was started with.
	ended := make(chan error)
	go func() {
		_, err := holder.Exec(context.Background(), id, client.Program{Code: "sleep 60"})
		ended <- err
	}()
	await(t, "the program", func() bool { return exec.Command("pgrep", "-f", "sleep 60").Run() == nil })
	began := time.Now()
	revokeAll(t, cfg)
	if err := <-ended; codeOf(err) != "unauthorized" {
		t.Errorf("the program ended with %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it ended %v after its key was revoked", took)
	}
	if _, err := holder.Info(t.Context()); codeOf(err) != "unauthorized" {
		t.Errorf("the revoked key: %v", err)
	}
	if res, err := socket.Exec(t.Context(), id, client.Program{Code: "echo on"}); err != nil || string(res.Stdout) != "on\n" {
		t.Errorf("the sandbox did not go on: %q, %v", res.Stdout, err)
	}
}

func TestSocket(t *testing.T) {
	cfg := fakeConfig(t)
	cfg.Listen, cfg.Socket = "", filepath.Join(string(cfg.RunDir), "sub", "emberd.sock")
	d := run(t, cfg)
	if got, want := d.Addr(), client.UnixScheme+cfg.Socket; got != want {
		t.Errorf("address %q, want %q", got, want)
	}
	if err := client.New(d.Addr()).Ready(t.Context()); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]os.FileMode{cfg.Socket: 0o600, filepath.Dir(cfg.Socket): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	other := fakeConfig(t)
	other.Socket = cfg.Socket
	if _, err := New(t.Context(), other); err == nil || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("a second daemon on the socket: %v", err)
	}
	if err := client.New(d.Addr()).Ready(t.Context()); err != nil {
		t.Errorf("the socket after somebody else wanted it: %v", err)
	}
}

// TestSocketPath checks what may be at the path of the socket.
func TestSocketPath(t *testing.T) {
	for _, tt := range []struct {
		name  string
		put   func(path string) error
		wants bool
	}{
		{"nothing", func(string) error { return nil }, true},
		{"a dead daemon's socket", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return l.Close()
		}, true},
		{"a file", func(path string) error { return os.WriteFile(path, nil, 0o600) }, false},
		{"a link to somewhere", func(path string) error { return os.Symlink("/dev/null", path) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := fakeConfig(t)
			cfg.Socket = filepath.Join(filepath.Dir(string(cfg.RunDir)), "s.sock")
			if err := tt.put(cfg.Socket); err != nil {
				t.Fatal(err)
			}
			d, err := New(t.Context(), cfg)
			if started := err == nil; started != tt.wants {
				t.Errorf("started %v: %v", started, err)
			}
			if err != nil {
				if _, err := os.Lstat(cfg.Socket); err != nil {
					t.Errorf("what was there is not any more: %v", err)
				}
				return
			}
			_ = d.Close(t.Context())
			if _, err := os.Lstat(cfg.Socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is left: %v", err)
			}
		})
	}
}

// TestSocketUsers connects as other users. Only those who were named get in, and
// the others not by a socket whose mode lets everybody connect, either.
func TestSocketUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becomes other users; needs root")
	}
	cfg := fakeConfig(t)
	cfg.Socket = cfg.RunDir.Socket()
	cfg.SocketUIDs = []uint{12345}
	if err := os.Chmod(filepath.Dir(string(cfg.RunDir)), 0o711); err != nil {
		t.Fatal(err)
	}
	run(t, cfg)
	for uid, want := range map[uint32]string{0: "200", 12345: "200", 54321: "403"} {
		cmd := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", cfg.Socket, "http://localhost/info")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
		cmd.Dir = "/"
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("user %d: %q, %v, want %s", uid, out, err, want)
		}
	}
}

// createKey makes a key for the daemon of cfg.
func createKey(t *testing.T, cfg Config) string {
	t.Helper()
	key, _, err := apikey.Create(cfg.DataDir.Keys(), "")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func revokeAll(t *testing.T, cfg Config) {
	t.Helper()
	keys, err := apikey.List(cfg.DataDir.Keys())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if err := apikey.Revoke(cfg.DataDir.Keys(), k.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func codeOf(err error) string {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Code
	}
	return fmt.Sprint(err)
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// writeCertificate writes a certificate of its own for localhost into dir.
func writeCertificate(t *testing.T, dir string, serial int64) TLSFiles {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	files := TLSFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	err = errors.Join(
		os.WriteFile(files.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600),
		os.WriteFile(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		// Two may be written within one tick of the filesystem's clock.
		os.Chtimes(files.Cert, time.Time{}, time.Unix(serial, 0)),
	)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// serialOf returns the serial number of the certificate that is served at addr.
func serialOf(t *testing.T, addr string) int64 {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("TLS version %x", v)
	}
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// TestAnswersThatNobodyReads checks how much the kernel takes in of an answer
// whose client reads none of it.
func TestAnswersThatNobodyReads(t *testing.T) {
	l, err := listen(t.Context(), fakeConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	client, err := net.Dial("tcp", l.addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	conn, err := l.all[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	taken := 0
	for piece := make([]byte, 64<<10); err == nil; {
		if err = conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var n int
		n, err = conn.Write(piece)
		taken += n
	}
	if taken > 1<<20 {
		t.Errorf("%d KiB were taken", taken>>10)
	}
}
