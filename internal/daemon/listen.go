package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/apikey"
	"github.com/emberd/emberd/internal/httpapi"
)

// mostConns bounds the connections of each listener. Those of the Unix socket
// are counted apart, so that whoever uses up the others does not lock out this
// host's administrator.
const mostConns = 4096

// connsOf returns how many connections a listener of a daemon may have that may
// open so many files. Half of them are for the sandboxes, and a connection that
// is one too many costs the one that has waited longest, and not an accept that
// fails for everybody.
func connsOf(files uint64) int { return int(max(1, min(files/4, mostConns))) }

// openFiles is how many files this process may open.
func openFiles() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	return limit.Cur, nil
}

// sendBuffer is how much of an answer may be on its way to a client of TCP. The
// kernel doubles it, for what it needs itself.
const sendBuffer = 128 << 10

// listeners is where the API is served: over TCP, on a Unix socket, or both.
type listeners struct {
	log  *slog.Logger
	keys *apikey.Ring
	// maxConns bounds the connections of each.
	maxConns int
	all      []listener
}

// listener is one of them, and what is asked of those who come in there.
type listener struct {
	net.Listener
	access httpapi.Access
}

// listen opens the listeners that cfg names. TCP that other hosts can reach is
// refused without keys and TLS, unless cfg says that this is wanted.
func listen(ctx context.Context, cfg Config) (_ *listeners, err error) {
	keys, err := apikey.Open(cfg.DataDir.Keys(), cfg.Log)
	if err != nil {
		return nil, err
	}
	files, err := openFiles()
	if err != nil {
		return nil, err
	}
	l := &listeners{log: cfg.Log, keys: keys, maxConns: connsOf(files)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if cfg.Listen == "" && cfg.Socket == "" {
		return nil, errors.New("nothing to listen on: neither an address nor a socket is given")
	}
	in, err := inherit(cfg.Manager, cfg.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	if cfg.Listen == "" {
		in.drop(storedTCP)
	} else if err := l.listenTCP(ctx, cfg, in); err != nil {
		return nil, err
	}
	if cfg.Socket == "" {
		in.drop(storedUnix)
	} else {
		socket, err := listenUnix(cfg, in)
		if err != nil {
			return nil, err
		}
		l.all = append(l.all, listener{socket, httpapi.Access{Peer: peerCheck(cfg.SocketUIDs), MaxConns: l.maxConns}})
	}
	return l, in.unwanted()
}

func (l *listeners) listenTCP(ctx context.Context, cfg Config, in *inherited) error {
	cert, err := loadCertificate(cfg.TLS, cfg.Log)
	if err != nil {
		return err
	}
	tcp, fresh, err := openTCP(ctx, cfg.Listen, in)
	if err != nil {
		return err
	}
	addr := tcp.Addr().(*net.TCPAddr).AddrPort()
	open := !addr.Addr().Unmap().IsLoopback()
	switch {
	case !open:
	case cfg.Insecure:
		l.log.Warn("other hosts can reach the API, and --insecure waives API keys and TLS", "addr", addr.String())
	case cert == nil || l.keys.Len() == 0:
		return errors.Join(tcp.Close(), fmt.Errorf("listen on %s: other hosts could reach this, "+
			"so it takes API keys (emberctl key create) and TLS (--tls-cert, --tls-key)", cfg.Listen))
	}
	at := listener{tcp, httpapi.Access{
		Hosts: hosts(addr, cert != nil, cfg.AllowHosts),
		Keys:  l.keys, KeysAlways: open && !cfg.Insecure,
		MaxConns: l.maxConns,
	}}
	if cert != nil {
		at.Listener = tls.NewListener(tcp, cert.config())
	}
	l.all = append(l.all, at)
	if fresh {
		in.keep(storedTCP, tcp)
	}
	return nil
}

// openTCP returns the listener at address that was passed, or a fresh one.
func openTCP(ctx context.Context, address string, in *inherited) (tcp net.Listener, fresh bool, err error) {
	if tcp = in.take("tcp", address); tcp == nil {
		in.drop(storedTCP)
		tcp, err = (&net.ListenConfig{Control: boundSend}).Listen(ctx, "tcp", address)
		return tcp, true, err
	}
	raw, err := tcp.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = boundSend("", "", raw)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("listen on %s: %w", address, err), tcp.Close())
	}
	return tcp, false, err
}

// boundSend bounds what the kernel keeps of answers that a client does not read;
// connections have it of their listener. Left to itself the kernel takes in
// megabytes for each, and every client that comes to read nothing is served
// those at full speed.
func boundSend(_, _ string, conn syscall.RawConn) error {
	var err error
	closed := conn.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer))
	})
	return errors.Join(closed, err)
}

// hosts returns the Host headers that clients of addr may send: its own names
// as long as they are those of no DNS record, and those in more, as they are.
func hosts(addr netip.AddrPort, secure bool, more []string) []string {
	names := []string{"localhost", "127.0.0.1", "[::1]"}
	switch ip := addr.Addr().Unmap().WithZone(""); {
	case ip.IsUnspecified(), ip.IsLoopback():
	case ip.Is4():
		names = append(names, ip.String())
	default:
		names = append(names, "["+ip.String()+"]")
	}
	out := make([]string, 0, 2*len(names)+len(more))
	for _, name := range names {
		out = append(out, name+":"+strconv.Itoa(int(addr.Port())))
		if !secure && addr.Port() == 80 || secure && addr.Port() == 443 {
			out = append(out, name)
		}
	}
	for _, name := range more {
		out = append(out, strings.ToLower(name))
	}
	return out
}

// addrs says where the API is served.
func (l *listeners) addrs() []string {
	out := make([]string, len(l.all))
	for i, at := range l.all {
		out[i] = at.Addr().String()
		if at.Addr().Network() == "unix" {
			out[i] = client.UnixScheme + out[i]
		}
	}
	return out
}

// serve answers requests until one listener fails or ctx ends. Then it calls
// drain, which makes the requests that are open end soon, waits for them up to
// a limit, and returns what went wrong.
func (l *listeners) serve(ctx context.Context, api *httpapi.API, drain func() error) error {
	failed := make(chan error, len(l.all))
	var running sync.WaitGroup
	defer running.Wait()
	servers := make([]*http.Server, len(l.all))
	var owed arrivals
	for i, at := range l.all {
		servers[i] = api.Server(at.access)
		owed.watch(servers[i])
		running.Go(func() {
			if err := servers[i].Serve(at); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				failed <- fmt.Errorf("serve %s: %w", at.Addr(), err)
			}
		})
	}
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	defer unwatch()
	running.Go(func() { l.keys.Watch(watching) })

	var errs []error
	select {
	case <-ctx.Done():
	case err := <-failed:
		errs = append(errs, err)
	}
	errs = append(errs, drain(), l.Close())
	select {
	case <-owed.gone():
	case <-time.After(settleTimeout):
	}
	stop, release := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer release()
	for _, srv := range servers {
		if err := srv.Shutdown(stop); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err, srv.Close())
		}
	}
	return errors.Join(errs...)
}

// Close closes every listener.
func (l *listeners) Close() error {
	var errs []error
	for _, at := range l.all {
		if err := at.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// settleTimeout is how long clients that have just connected may take to say what
// they want of a daemon that ends.
const settleTimeout = 2 * time.Second

// drainTimeout is how long requests may take to notice that their sandboxes are
// gone.
const drainTimeout = 10 * time.Second
