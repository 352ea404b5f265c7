package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// program is a daemon in which a program wrote text, of which the first bytes are
// gone. Each answer breaks off after a piece of it, until all was sent.
func program(t *testing.T, text string, gone, piece int) (*httptest.Server, *atomic.Int64) {
	t.Helper()
	var answers atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers.Add(1)
		if r.URL.Path != "/sandboxes/sb_a1b2c3d4e5f6/execs/ex_0123456789ab/output" || r.URL.Query().Get("stream") != "stderr" || r.URL.Query().Get("follow") != "true" {
			t.Errorf("asked for %s", r.URL)
		}
		offset, err := strconv.Atoi(r.URL.Query().Get("offset"))
		if err != nil || offset > len(text) {
			t.Errorf("offset %d, %v", offset, err)
			return
		}
		if offset < gone {
			w.WriteHeader(http.StatusGone)
			_, _ = fmt.Fprintf(w, `{"error":"gone","code":"output_gone","first_offset":%d}`, gone)
			return
		}
		rest := text[offset:]
		_, _ = io.WriteString(w, rest[:min(piece, len(rest))])
		_ = http.NewResponseController(w).Flush()
		if len(rest) > piece {
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(srv.Close)
	return srv, &answers
}

const (
	sb = "sb_a1b2c3d4e5f6"
	ex = "ex_0123456789ab"
)

func TestOutputBreaksOff(t *testing.T) {
	srv, _ := program(t, "0123456789", 0, 4)
	c := New(srv.URL)
	out, err := c.Output(t.Context(), sb, ex, Stderr, 3, true)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	got, err := io.ReadAll(out)
	if string(got) != "3456" || out.Offset() != 7 || err == nil {
		t.Errorf("%q, at %d, %v", got, out.Offset(), err)
	}
}

// No byte is missing or there twice, however often the connection breaks.
func TestCopyOutputGoesOn(t *testing.T) {
	text := strings.Repeat("0123456789", 10)
	srv, answers := program(t, text, 0, 7)
	var got bytes.Buffer
	at, err := New(srv.URL).CopyOutput(t.Context(), &got, sb, ex, Stderr, 5, Resume{Patience: time.Minute})
	if err != nil || at != int64(len(text)) || got.String() != text[5:] {
		t.Errorf("%q, at %d, %v", got.String(), at, err)
	}
	if n := answers.Load(); n != 14 {
		t.Errorf("%d requests", n)
	}
}

func TestCopyOutputThatIsGone(t *testing.T) {
	srv, _ := program(t, "0123456789", 4, 10)
	c := New(srv.URL)
	var got bytes.Buffer
	at, err := c.CopyOutput(t.Context(), &got, sb, ex, Stderr, 1, Resume{Patience: time.Minute})
	if e, ok := errors.AsType[*Error](err); !ok || e.FirstOffset != 4 || at != 1 || got.Len() > 0 {
		t.Errorf("%q, at %d, %v", got.String(), at, err)
	}
	var told []int64
	at, err = c.CopyOutput(t.Context(), &got, sb, ex, Stderr, 1, Resume{Gone: func(from, to int64) { told = append(told, from, to) }})
	if err != nil || at != 10 || got.String() != "456789" || len(told) != 2 || told[0] != 1 || told[1] != 4 {
		t.Errorf("%q, at %d, %v, told %v", got.String(), at, err, told)
	}
}

// A daemon that is restarted is waited for, and one that stays away is not for
// ever.
func TestCopyOutputOutlivesTheDaemon(t *testing.T) {
	srv, _ := program(t, "0123456789", 0, 10)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	c := New(addr)
	began := time.Now()
	if _, err := c.CopyOutput(t.Context(), io.Discard, sb, ex, Stderr, 0, Resume{Patience: 300 * time.Millisecond}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	back := &http.Server{Addr: addr, Handler: srv.Config.Handler, ReadHeaderTimeout: time.Second}
	time.AfterFunc(300*time.Millisecond, func() { _ = back.ListenAndServe() })
	defer func() { _ = back.Close() }()
	var got bytes.Buffer
	if at, err := c.CopyOutput(t.Context(), &got, sb, ex, Stderr, 0, Resume{Patience: time.Minute}); err != nil || at != 10 || got.String() != "0123456789" {
		t.Errorf("%q, at %d, %v", got.String(), at, err)
	}
}

func TestCopyOutputEnds(t *testing.T) {
	srv, _ := program(t, strings.Repeat("x", 1000), 0, 10)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if at, err := New(srv.URL).CopyOutput(ctx, io.Discard, sb, ex, Stderr, 0, Resume{Patience: time.Minute}); !errors.Is(err, context.DeadlineExceeded) || at == 0 {
		t.Errorf("at %d, %v", at, err)
	}
	wrong := errors.New("no more")
	if at, err := New(srv.URL).CopyOutput(t.Context(), failing{wrong}, sb, ex, Stderr, 0, Resume{Patience: time.Minute}); !errors.Is(err, wrong) || at != 0 {
		t.Errorf("at %d, %v", at, err)
	}
}

type failing struct{ err error }

func (w failing) Write([]byte) (int, error) { return 0, w.err }

func TestExecRequests(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = fmt.Sprintf("%s %s %s", r.Method, strings.TrimPrefix(r.URL.String(), "/sandboxes/"+sb+"/execs"), strings.TrimSpace(string(b)))
		switch {
		case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/execs"):
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"exec_id":"ex_0123456789ab"}`)
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusNoContent)
		case strings.HasSuffix(r.URL.Path, "/execs"):
			_, _ = io.WriteString(w, `{"execs":[{"exec_id":"ex_0123456789ab","state":"running"}]}`)
		default:
			_, _ = io.WriteString(w, `{"exec_id":"ex_0123456789ab","state":"exited","exit_code":0}`)
		}
	}))
	defer srv.Close()
	c := New(srv.URL)
	for _, tt := range []struct {
		do   func() error
		want string
	}{
		{func() error {
			got, err := c.StartExec(t.Context(), sb, Program{Code: "1", Stdin: []byte("a")}, true)
			if got != ex {
				t.Errorf("started %q", got)
			}
			return err
		}, `POST  {"code":"1","stdin":"a","stdin_open":true}`},
		{func() error {
			list, err := c.Execs(t.Context(), sb)
			if len(list) != 1 || list[0].ExitCode != nil {
				t.Errorf("%+v", list)
			}
			return err
		}, "GET  "},
		{func() error {
			state, err := c.ExecState(t.Context(), sb, ex)
			if state.ExitCode == nil || *state.ExitCode != 0 {
				t.Errorf("%+v", state)
			}
			return err
		}, "GET /" + ex + " "},
		{func() error { return c.Feed(t.Context(), sb, ex, []byte("a\x00b"), true) }, "POST /" + ex + "/stdin?end=true a\x00b"},
		{func() error { return c.Signal(t.Context(), sb, ex, "TERM") }, "POST /" + ex + `/signal {"signal":"TERM"}`},
	} {
		if err := tt.do(); err != nil || got != tt.want {
			t.Errorf("%q, %v, want %q", got, err, tt.want)
		}
	}
}
