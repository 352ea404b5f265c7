// Package client is the Go client of emberd's HTTP API, and the only package of
// emberd meant for import.
//
// A [Client] makes sandboxes, runs programs in them and deletes them:
//
//	c := client.New(client.DefaultAddr)
//	id, err := c.Create(ctx, "python")
//	if err != nil {
//		return err
//	}
//	defer c.Delete(context.WithoutCancel(ctx), id)
//	res, err := c.Exec(ctx, id, client.Program{Code: "print(6*7)"})
//	if err != nil {
//		return err // it is not known how the program ended
//	}
//	fmt.Printf("%s exit %d\n", res.Stdout, res.ExitCode)
//
// A program that fails, or that was killed at its time limit, is a [Result].
// An error means that emberd could not do what was asked: an [*Error] carries
// the daemon's answer, [ErrUnreachable] means that nobody answered.
//
// There are no retries, as the caller knows best what a second attempt would cost.
// [Client.CreateOnce] and [Program.Key] make it safe to try again.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/emberd/emberd/api/rest"
)

// DefaultAddr is where emberd listens when told nothing else.
const DefaultAddr = "127.0.0.1:7777"

// UnixScheme begins the address of a daemon's Unix socket.
const UnixScheme = "unix://"

// ErrUnreachable is returned when no daemon answers at the client's address.
var ErrUnreachable = errors.New("no emberd answers")

// Error is an answer of the daemon that is not a success.
type Error struct {
	Status  int    // of HTTP
	Code    string // the class, such as "not_found"
	Message string // for people
	// FirstOffset is, when output was asked for that is gone (code
	// "output_gone"), from where on there is some.
	FirstOffset int64
}

func (e *Error) Error() string { return e.Message }

// Client talks to one daemon. It may be used by any number of goroutines.
type Client struct {
	addr string // for error messages
	base string
	key  string
	http *http.Client
	// patience is how long a create that was called off waits for the daemon.
	patience time.Duration
}

// Option changes how a [Client] works.
type Option func(*Client)

// WithHTTPClient makes the client send its requests through hc, which then has
// to find the way to a Unix socket itself. A timeout set there also limits how
// long a program may run.
func WithHTTPClient(hc *http.Client) Option { return func(c *Client) { c.http = hc } }

// WithAPIKey makes the client send key with each request, for a daemon that asks
// for one.
func WithAPIKey(key string) Option { return func(c *Client) { c.key = key } }

// New returns a client of the daemon at addr: "host:port", a URL, or the path of
// a Unix socket after "unix://". It does not connect.
func New(addr string, opts ...Option) *Client {
	dial := (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	base := strings.TrimRight(addr, "/")
	if path, ok := strings.CutPrefix(addr, UnixScheme); ok {
		base = "http://localhost"
		tcp := dial
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return tcp(ctx, "unix", path) }
	} else if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	c := &Client{addr: addr, base: base, patience: defaultPatience, http: &http.Client{Transport: &http.Transport{
		DialContext:         dial,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
	}}}
	for _, o := range opts {
		o(c)
	}
	return c
}

// Program is one program to run.
type Program struct {
	// Code is source text for the pack's interpreter. It must be UTF-8 without
	// NUL.
	Code string
	// Stdin is what the program reads on standard input, byte for byte.
	Stdin []byte
	// Timeout is a wall-clock limit, in whole milliseconds; zero means that of
	// the sandbox.
	Timeout time.Duration
	// Key, unless it is empty, names the request: a program is started once with it
	// in a sandbox, however often it is asked for, and the answer is the same. It is
	// 1 to 128 visible characters of ASCII that are not used for another request.
	Key string
}

// Result tells how a program ended.
type Result struct {
	// ExecID is the program's id, see [Client.ExecState].
	ExecID string
	// Stdout and Stderr are what the program wrote, byte for byte, from its
	// beginning.
	Stdout, Stderr []byte
	// StdoutTruncated and StderrTruncated say that the program wrote more than
	// the daemon keeps, and that the rest is lost.
	StdoutTruncated, StderrTruncated bool
	// ExitCode is the program's status, 128+n when signal n ended it, and -1
	// when Err is set.
	ExitCode int
	// Warm says that the program ran in an interpreter that was started ahead.
	Warm     bool
	Duration time.Duration
	// Err says why there is no exit status: [TimedOut], or why the interpreter
	// could not be started.
	Err string
	// LimitsHit are the limits that the program, or one that it started, ran into,
	// as the guest tells and as the API names them: "memory_mib", "disk_mib",
	// "pids".
	LimitsHit []string
	// EgressDenied is what was refused to the sandbox while the program ran.
	EgressDenied []rest.EgressDenial
}

// TimedOut is [Result].Err of a program that was killed at its time limit.
const TimedOut = "execution timed out"

// Exec runs p in the sandbox id and returns when it has ended. When ctx ends
// first, the program goes on until its time limit; [Client.Execs] lists it.
func (c *Client) Exec(ctx context.Context, id string, p Program) (Result, error) {
	var res rest.ExecResult
	if err := c.do(ctx, http.MethodPost, sandboxPath(id)+"/exec", p.request(), &res, once(p.Key)); err != nil {
		return Result{}, err
	}
	return Result{
		ExecID: res.ExecID,

		Stdout: rest.DecodeOutput(res.Stdout, res.StdoutBase64),
		Stderr: rest.DecodeOutput(res.Stderr, res.StderrBase64),

		StdoutTruncated: res.StdoutTruncated,
		StderrTruncated: res.StderrTruncated,

		ExitCode: res.ExitCode,
		Warm:     res.Start == rest.StartName(true),
		Duration: time.Duration(res.DurationUS) * time.Microsecond,
		Err:      res.Error,

		LimitsHit:    res.LimitsHit,
		EgressDenied: res.EgressDenied,
	}, nil
}

func (p Program) request() rest.ExecRequest {
	req := rest.ExecRequest{Code: p.Code, TimeoutMS: milliseconds(p.Timeout)}
	if asText(p.Stdin) {
		req.Stdin = string(p.Stdin)
	} else {
		req.StdinBase64 = p.Stdin
	}
	return req
}

// asText reports whether b is best sent as a JSON string: whether it can be, and
// is no longer that way than in base64. A NUL takes six bytes as text.
func asText(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	escaped := 0
	for _, c := range b {
		if c < ' ' && c != '\n' && c != '\t' && c != '\r' {
			escaped++
		}
	}
	return escaped <= len(b)/15 // five bytes more each, against a third more
}

// Delete ends the sandbox id and everything in it.
func (c *Client) Delete(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, sandboxPath(id), nil, nil)
}

// Get returns the sandbox id.
func (c *Client) Get(ctx context.Context, id string) (rest.Sandbox, error) {
	var sb rest.Sandbox
	err := c.do(ctx, http.MethodGet, sandboxPath(id), nil, &sb)
	return sb, err
}

// List returns every sandbox there is, oldest first.
func (c *Client) List(ctx context.Context) ([]rest.Sandbox, error) {
	var list rest.SandboxList
	err := c.do(ctx, http.MethodGet, "/sandboxes", nil, &list)
	return list.Sandboxes, err
}

// Info describes the daemon.
func (c *Client) Info(ctx context.Context) (rest.Info, error) {
	var info rest.Info
	err := c.do(ctx, http.MethodGet, "/info", nil, &info)
	return info, err
}

// Pool describes the microVMs that the daemon keeps ready.
func (c *Client) Pool(ctx context.Context) ([]rest.PoolStock, error) {
	var p rest.Pool
	err := c.do(ctx, http.MethodGet, "/pool", nil, &p)
	return p.Pool, err
}

// Templates returns the snapshots that the daemon restores microVMs from.
func (c *Client) Templates(ctx context.Context) ([]rest.Template, error) {
	var list rest.TemplateList
	err := c.do(ctx, http.MethodGet, "/templates", nil, &list)
	return list.Templates, err
}

// BuildTemplate makes the template of a pack and size, unless there is one, and
// returns when it is ready.
func (c *Client) BuildTemplate(ctx context.Context, req rest.TemplateRequest) (rest.Template, error) {
	var t rest.Template
	err := c.do(ctx, http.MethodPost, "/templates", req, &t)
	return t, err
}

// DeleteTemplate removes a template. The daemon makes it anew when it needs it.
func (c *Client) DeleteTemplate(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/templates/"+url.PathEscape(id), nil, nil)
}

// Healthy returns nil when the daemon answers at all.
func (c *Client) Healthy(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/healthz", nil, nil)
}

// Ready returns nil when the daemon can make sandboxes.
func (c *Client) Ready(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/readyz", nil, nil)
}

// do sends one request with in as its JSON body, unless nil, and decodes the
// answer into out, unless nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any, options ...requestOption) error {
	resp, err := c.send(ctx, method, path, in, options...)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	// To its end, also where nobody wants it: else the connection cannot be used again.
	b, err := io.ReadAll(resp.Body)
	if err == nil && out != nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("read the answer of emberd at %s: %w", c.addr, err)
	}
	return nil
}

// send sends one request with in as its JSON body, unless nil, and returns the
// answer if it is a success. The caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, in any, options ...requestOption) (*http.Response, error) {
	if in == nil {
		return c.sendBytes(ctx, method, path, "", nil, options...)
	}
	b, err := encode(in)
	if err != nil {
		return nil, err
	}
	return c.sendBytes(ctx, method, path, "application/json", b, options...)
}

// requestOption changes one request.
type requestOption func(*http.Request)

// once has a request carried out once, if there is a key.
func once(key string) requestOption {
	return func(r *http.Request) {
		if key != "" {
			r.Header.Set(rest.OnceHeader, key)
		}
	}
}

// sendBytes is send for a body of any type.
func (c *Client) sendBytes(ctx context.Context, method, path, contentType string, body []byte, options ...requestOption) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	for _, o := range options {
		o(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if resp.StatusCode >= 300 {
		defer func() { _ = resp.Body.Close() }()
		return nil, answerError(resp)
	}
	return resp, nil
}

// transportError says what a request that got no answer died of.
func (c *Client) transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // the method and URL add nothing for the reader
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("%w at %s", ErrUnreachable, c.addr)
		}
		return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.addr, op.Err)
	}
	return fmt.Errorf("no answer of emberd at %s: %w", c.addr, err)
}

// answerError reads the error in an answer that is not a success.
func answerError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode}
	var body rest.Error
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && json.Unmarshal(b, &body) == nil && body.Message != "" {
		e.Code, e.Message, e.FirstOffset = body.Code, body.Message, body.FirstOffset
	} else {
		e.Message = fmt.Sprintf("emberd answered %s", resp.Status)
	}
	return e
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // every escaped byte is one less within the daemon's limit
	err := enc.Encode(v)
	return b.Bytes(), err
}

func sandboxPath(id string) string { return "/sandboxes/" + url.PathEscape(id) }

// milliseconds rounds d up, so that no limit becomes none.
func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}
