package fctest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/emberd/emberd/internal/agent/agenttest"
)

// agentPort is the port on which the guest's agent listens.
const agentPort = "1024"

// vmm is the state of a fake firecracker.
type vmm struct {
	mode  Mode
	stop  context.CancelFunc
	guest *guestListener

	mu       sync.Mutex
	bodies   map[string]map[string]any // what was PUT, by path
	booted   bool
	exitCode int
}

// run is the fake's main. It ends with the process.
func run(mode Mode, args []string) int {
	socket, ok := flagValue(args, "--api-sock")
	if !ok {
		fmt.Println("fake firecracker: no --api-sock")
		return 153 // Firecracker's status for bad arguments
	}
	ctx, stop := context.WithCancel(context.Background())
	v := &vmm{mode: mode, stop: stop, guest: newGuestListener(), bodies: map[string]map[string]any{}}
	if mode == Deaf {
		<-ctx.Done()
	}
	l, err := net.Listen("unix", jailPath(socket))
	if err != nil {
		fmt.Println("fake firecracker:", err)
		return 1
	}
	srv := &http.Server{Handler: v}
	go func() { _ = srv.Serve(l) }()
	<-ctx.Done()
	_ = srv.Close()
	return v.exitCode
}

func flagValue(args []string, name string) (string, bool) {
	for i, a := range args {
		if a == name && i+1 < len(args) {
			return args[i+1], true
		}
	}
	return "", false
}

// jailPath is where an absolute path of the VMM's is, whose root directory is
// this process's working directory.
func jailPath(path string) string { return "." + path }

// fields are the bodies that the API takes, by path: every field it knows.
var fields = map[string][]string{
	"/machine-config": {"vcpu_count", "mem_size_mib"},
	"/cpu-config":     {"cpuid_modifiers"},
	"/boot-source":    {"kernel_image_path", "initrd_path", "boot_args"},
	"/drives/rootfs":  {"drive_id", "path_on_host", "is_root_device", "is_read_only"},
	"/vsock":          {"guest_cid", "uds_path"},
	"/entropy":        {},
	"/actions":        {"action_type"},
}

func (v *vmm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.put(r); err != nil { //nolint:contextcheck // a guest outlives the request that boots it
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (v *vmm) put(r *http.Request) error {
	known, ok := fields[r.URL.Path]
	switch {
	case r.Method != http.MethodPut || !ok:
		return fmt.Errorf("invalid request method and/or path: %s %s", r.Method, r.URL.Path)
	case v.mode == Refusing:
		return fmt.Errorf("refused")
	case v.booted:
		return fmt.Errorf("the requested operation is not supported after starting the microVM")
	}
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return err
	}
	for field, value := range body {
		if !slices.Contains(known, field) {
			return fmt.Errorf("unknown field `%s`", field)
		}
		// Files are opened when they are named, as Firecracker does.
		if path, _ := value.(string); strings.HasSuffix(field, "_path") || field == "path_on_host" {
			if field == "uds_path" {
				continue
			}
			if _, err := os.Stat(jailPath(path)); err != nil {
				return err
			}
		}
	}
	v.bodies[r.URL.Path] = body
	switch r.URL.Path {
	case "/vsock":
		return v.listenVsock(body["uds_path"].(string))
	case "/actions":
		return v.start(body["action_type"].(string))
	}
	return nil
}

// start boots the guest.
func (v *vmm) start(actionType string) error {
	args, _ := v.bodies["/boot-source"]["boot_args"].(string)
	if actionType != "InstanceStart" || args == "" {
		return fmt.Errorf("cannot start the microVM without a kernel")
	}
	v.booted = true
	fmt.Println("fake firecracker: guest console begins")
	switch v.mode {
	case Stillborn:
		fmt.Println("fake firecracker: stillborn")
		v.exitCode = 1
		v.stop()
	case Sound:
		cfg := agenttest.Config{Interpreter: "python3"}
		for arg := range strings.FieldsSeq(args) {
			if interpreter, ok := strings.CutPrefix(arg, "emberd.interpreter="); ok {
				cfg.Interpreter = interpreter
			}
		}
		go func() { _ = agenttest.Serve(context.Background(), v.guest, cfg) }()
	}
	return nil
}

// listenVsock serves Firecracker's host side of vsock: a connection begins with
// CONNECT and a port, and is closed without a word when nobody listens there.
func (v *vmm) listenVsock(path string) error {
	l, err := net.Listen("unix", jailPath(path))
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go v.connect(conn)
		}
	}()
	return nil
}

func (v *vmm) connect(conn net.Conn) {
	line, err := bufio.NewReaderSize(io.LimitReader(conn, 32), 32).ReadString('\n')
	v.mu.Lock()
	listening := v.booted && (v.mode == Sound || v.mode == Mute)
	v.mu.Unlock()
	if err != nil || line != "CONNECT "+agentPort+"\n" || !listening {
		_ = conn.Close()
		return
	}
	if _, err := fmt.Fprintf(conn, "OK %s\n", agentPort); err != nil {
		_ = conn.Close()
		return
	}
	if v.mode == Sound {
		v.guest.conns <- conn
	}
}

// guestListener hands the guest the connections that the host made.
type guestListener struct {
	conns chan net.Conn
}

func newGuestListener() *guestListener { return &guestListener{conns: make(chan net.Conn)} }

func (l *guestListener) Accept() (net.Conn, error) { return <-l.conns, nil }
func (l *guestListener) Close() error              { return nil }
func (l *guestListener) Addr() net.Addr            { return &net.UnixAddr{Name: "guest", Net: "vsock"} }
