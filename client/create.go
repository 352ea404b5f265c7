package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/emberd/emberd/api/rest"
)

// defaultPatience is how long a create that was called off waits for the
// daemon's last word.
const defaultPatience = 10 * time.Second

// Create makes a sandbox from the language pack called pack, or from the
// default one if pack is "", and returns its id when it is ready for programs.
//
// When ctx ends first, no sandbox is left behind: Create tells the daemon to
// stop and waits a moment for its answer, and if that says that the sandbox had
// just been made, deletes it.
func (c *Client) Create(ctx context.Context, pack string, options ...CreateOption) (string, error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	// An HTTP request that is cancelled never tells what became of it. So this
	// one is not cancelled; only its sending half is closed, which the daemon
	// takes as the client's going away, and its answer can still be read.
	reqCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var conn atomic.Pointer[httptrace.GotConnInfo]
	traced := httptrace.WithClientTrace(reqCtx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			conn.Store(&info)
			if ctx.Err() != nil {
				cancel() // before anything was sent
			}
		},
	})
	stop := context.AfterFunc(ctx, func() {
		abort := time.AfterFunc(c.patience, cancel)
		context.AfterFunc(reqCtx, func() { abort.Stop() })
		if info := conn.Load(); info == nil || closeWrite(info.Conn) != nil {
			cancel()
		}
	})
	defer stop()

	var created rest.CreateResponse
	err := c.do(traced, http.MethodPost, "/sandboxes", createRequest(pack, options), &created)
	if ctx.Err() == nil {
		return created.ID, err
	}
	if err != nil {
		return "", context.Cause(ctx)
	}
	if err := c.Delete(reqCtx, created.ID); err != nil {
		return "", fmt.Errorf("%w; delete sandbox %s: %w", context.Cause(ctx), created.ID, err)
	}
	return "", context.Cause(ctx)
}

// CreateOnce is Create with a name for the request: it makes one sandbox however
// often it is called with that key, and returns the id of that one for 24 hours,
// also when the sandbox is gone by then. The key is 1 to 128 visible characters of
// ASCII; with another pack or other options it has to be another one. It is
// forgotten when the create fails.
//
// When ctx ends first, the sandbox is made all the same, and found by calling again.
func (c *Client) CreateOnce(ctx context.Context, key, pack string, options ...CreateOption) (string, error) {
	if key == "" {
		return "", errors.New("a sandbox that is to be created once needs a key")
	}
	var created rest.CreateResponse
	err := c.do(ctx, http.MethodPost, "/sandboxes", createRequest(pack, options), &created, once(key))
	return created.ID, err
}

func createRequest(pack string, options []CreateOption) rest.CreateRequest {
	req := rest.CreateRequest{LanguagePack: pack}
	for _, o := range options {
		o(&req)
	}
	return req
}

// closeWrite closes the sending half of conn, if it has halves.
func closeWrite(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}
