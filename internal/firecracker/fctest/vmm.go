package fctest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// agentPort is the port on which the guest's agent listens.
const agentPort = "1024"

// vmm is the state of a fake firecracker.
type vmm struct {
	mode  Mode
	stop  context.CancelFunc
	guest *guestListener

	mu       sync.Mutex
	vm       machine
	running  bool
	paused   bool
	memory   []byte // of a guest that was restored and has not gone on
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
	v := &vmm{mode: mode, stop: stop, guest: newGuestListener()}
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

func (v *vmm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.call(r); err != nil { //nolint:contextcheck // a guest outlives the request that boots it
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
		return
	}
	w.WriteHeader(http.StatusNoContent)
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
	listening := v.running && !v.paused && (v.mode == Sound || v.mode == Mute)
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
