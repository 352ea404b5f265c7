package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// attackEnv tells a test binary that it is to be slow clients, and of which
// daemon and sandbox.
const attackEnv = "EMBERD_TEST_ATTACK"

// How many slow clients there are of each kind.
const slowHeaders, slowBodies, neverRead = 1000, 200, 200

// gathering is how long it takes until all of them are there. It is as long as
// the daemon has patience with any of them, so that they do not come back in
// step: no two clients of other hosts do.
const gathering = 10 * time.Second

// runAttack is the process of the slow clients. They are slow until its standard
// input ends. From then on they neither send nor read nor close.
func runAttack(target string) error {
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, enough := context.WithCancel(ended)
	defer enough()
	addr, id, _ := strings.Cut(target, " ")
	held := make(chan net.Conn, slowHeaders+slowBodies+neverRead)
	var attackers sync.WaitGroup
	for kind, n := range map[string]int{"header": slowHeaders, "body": slowBodies, "read": neverRead} {
		for range n {
			attackers.Go(func() {
				for delay := rand.N(gathering); !pause(ctx, delay); delay = 0 {
					if conn := attack(ctx, kind, addr, id); conn != nil {
						held <- conn
					}
				}
			})
		}
	}
	fmt.Println("attacking")
	_, err := io.Copy(io.Discard, os.Stdin)
	enough()
	attackers.Wait()
	close(held)
	<-ended.Done()
	for conn := range held {
		_ = conn.Close()
	}
	return err
}

// attack opens a connection and keeps it busy, slowly, until the server closes
// it or ctx ends. In the latter case it stays open, and is returned.
func attack(ctx context.Context, kind, addr, id string) net.Conn {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	start, more := "GET /info HTTP/1.1\r\nHost: "+addr+"\r\nX: ", "a"
	closed := func() bool {
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		_, err := conn.Read(make([]byte, 1))
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
	switch kind {
	case "body":
		start = fmt.Sprintf("POST /sandboxes/%s/exec HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n\r\n{\"code\":\"", id, addr)
	case "read":
		more = "GET /openapi.json HTTP/1.1\r\nHost: " + addr + "\r\n\r\n"
		start = strings.Repeat(more, 500)
		closed = func() bool { return pause(ctx, time.Second) }
	}
	for _, err = io.WriteString(conn, start); err == nil && !closed(); _, err = io.WriteString(conn, more) {
		if ctx.Err() != nil {
			return conn
		}
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	_ = conn.Close()
	return nil
}

// pause waits for d, and reports whether ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return true
	case <-time.After(d):
		return false
	}
}

// bystanderEnv tells a test binary that it is to be a server that does next to
// nothing and that nobody attacks.
const bystanderEnv = "EMBERD_TEST_BYSTANDER"

// runBystander is the process of that server. It prints its address.
func runBystander(string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "{}\n")
	})}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	fmt.Println(l.Addr())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
