package httpapi

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/sandbox"
	"github.com/emberd/emberd/internal/testenv"
)

func TestExecAnswers(t *testing.T) {
	const (
		execs   = "/sandboxes/" + knownID + "/execs"
		one     = execs + "/" + knownExec
		running = `{"exec_id":"ex_0123456789ab","state":"running","started_at":"2025-01-02T03:04:05Z",` +
			`"stdout":{"first_offset":10,"end_offset":20},"stderr":{"first_offset":0,"end_offset":5},"stdin_bytes":7,"stdin_open":true}`
		ended = `{"exec_id":"ex_0123456789ab","state":"exited","started_at":"2025-01-02T03:04:05Z",` +
			`"stdout":{"first_offset":10,"end_offset":20},"stderr":{"first_offset":0,"end_offset":5},"stdin_bytes":7,"stdin_open":true,` +
			`"exit_code":3,"duration_ms":1,"duration_us":1500,"start":"warm","limits_hit":["pids"]}`
		notFound = `{"error":"exec not found","code":"not_found"}`
	)
	for _, tt := range []struct {
		name, method, path, body string
		err                      error
		status                   int
		want                     string
		call                     string
	}{
		{name: "start", method: "POST", path: execs, body: `{"code":"1","stdin":"a","stdin_open":true}`, status: 201, want: `{"exec_id":"ex_0123456789ab"}`, call: "exec"},
		{name: "start nothing", method: "POST", path: execs, body: `{}`, status: 400, want: `{"error":"missing field \"code\"","code":"invalid_request"}`},
		{name: "start oddly", method: "POST", path: execs, body: `{"code":"1","stdin_open":1}`, status: 400, want: `{"error":"invalid request body","code":"invalid_request"}`},
		{name: "start elsewhere", method: "POST", path: "/sandboxes/sb_000000000000/execs", body: `{"code":"1"}`, status: 404, want: `{"error":"sandbox not found","code":"not_found"}`, call: "exec"},
		{name: "list", method: "GET", path: execs, status: 200, want: `{"execs":[` + running + "," + ended + `]}`, call: "execs"},
		{name: "get", method: "GET", path: one, status: 200, want: running, call: "get-exec"},
		{name: "get another", method: "GET", path: execs + "/ex_000000000000", status: 404, want: notFound, call: "get-exec"},
		{name: "get no id", method: "GET", path: execs + "/1", status: 404, want: notFound},
		{name: "output, odd stream", method: "GET", path: one + "/output?stream=x", status: 400, want: `{"error":"stream is \"x\"; it can be stdout or stderr","code":"invalid_request"}`},
		{name: "output, odd offset", method: "GET", path: one + "/output?offset=-1", status: 400, want: `{"error":"offset is \"-1\"; it must be a number from 0 on","code":"invalid_request"}`},
		{name: "output, odd follow", method: "GET", path: one + "/output?follow=x", status: 400, want: `{"error":"follow is \"x\"; it can be true or false","code":"invalid_request"}`},
		{
			name: "output, gone", method: "GET", path: one + "/output?offset=5&stream=stderr&follow=1", err: sandbox.OutputGone(4096), status: 410,
			want: `{"error":"the output before byte 4096 is no longer kept","code":"output_gone","first_offset":4096}`,
			call: "output {Stderr:true Offset:5 Follow:true}",
		},
		{name: "stdin", method: "POST", path: one + "/stdin", body: " \x00\xff ", status: 204, call: `feed " \x00\xff " false`},
		{name: "stdin ends", method: "POST", path: one + "/stdin?end=1", status: 204, call: `feed "" true`},
		{name: "stdin, odd end", method: "POST", path: one + "/stdin?end=x", status: 400, want: `{"error":"end is \"x\"; it can be true or false","code":"invalid_request"}`},
		{name: "stdin, too much", method: "POST", path: one + "/stdin", body: strings.Repeat("x", 1<<20+1), status: 413, want: `{"error":"request body too large: the limit is 1048576 bytes","code":"too_large"}`},
		{name: "stdin, ended", method: "POST", path: one + "/stdin", err: sandbox.ErrExecEnded, status: 409, want: `{"error":"the program has ended, or its input has","code":"exec_ended"}`, call: `feed "" false`},
		{name: "signal", method: "POST", path: one + "/signal", body: `{"signal":"TERM"}`, status: 204, call: "signal 15"},
		{name: "signal, odd", method: "POST", path: one + "/signal", body: `{"signal":"SIGTERM"}`, status: 400, want: `{"error":"signal is \"SIGTERM\"; it can be HUP, INT, QUIT, KILL, USR1, USR2, TERM, CONT, STOP","code":"invalid_request"}`},
		{name: "signal, none", method: "POST", path: one + "/signal", body: `{}`, status: 400, want: `{"error":"missing field \"signal\"","code":"invalid_request"}`},
		{name: "signal nobody", method: "POST", path: execs + "/x/signal", body: `{"signal":"TERM"}`, status: 404, want: notFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &fakeEngine{err: tt.err}
			rec := request(t, newAPI(e), tt.method, tt.path, tt.body)
			if rec.Code != tt.status || strings.TrimSpace(rec.Body.String()) != tt.want {
				t.Errorf("%d %s, want %d %s", rec.Code, rec.Body, tt.status, tt.want)
			}
			var want []string
			if tt.call != "" {
				want = []string{tt.call}
			}
			if !reflect.DeepEqual(e.calls, want) {
				t.Errorf("calls %q, want %q", e.calls, want)
			}
		})
	}
}

// piecemeal is output whose pieces come when they are let, and which ends with an
// error.
type piecemeal struct {
	pieces chan string
	end    error
}

func (p *piecemeal) Read(b []byte) (int, error) {
	piece, ok := <-p.pieces
	if !ok {
		return 0, p.end
	}
	return copy(b, piece), nil
}

func (p *piecemeal) Close() error { return nil }

// Output is sent as it comes, and whoever reads it knows whether it was all.
func TestExecOutput(t *testing.T) {
	for name, end := range map[string]error{"whole": io.EOF, "broken off": errors.New("bytes are gone")} {
		t.Run(name, func(t *testing.T) {
			out := &piecemeal{make(chan string), end}
			e := &fakeEngine{output: out}
			srv := httptest.NewServer(newAPI(e))
			defer srv.Close()
			resp, err := http.Get(srv.URL + "/sandboxes/" + knownID + "/execs/" + knownExec + "/output?offset=12&follow=true")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != 200 || resp.Header.Get("Emberd-Offset") != "12" || resp.Header.Get("Content-Type") != "application/octet-stream" {
				t.Errorf("%d, %v", resp.StatusCode, resp.Header)
			}
			for _, piece := range []string{"a", "\x00\xff", strings.Repeat("x", 1000)} {
				out.pieces <- piece
				got := make([]byte, len(piece))
				if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
					t.Fatalf("%.20q, %v, want %.20q", got, err, piece)
				}
			}
			close(out.pieces)
			rest, err := io.ReadAll(resp.Body)
			if whole := err == nil; len(rest) > 0 || whole != (name == "whole") {
				t.Errorf("%q and %v at the end", rest, err)
			}
		})
	}
}

// A client that takes nothing is not waited for, and that is not an end.
func TestExecOutputNeverRead(t *testing.T) {
	out := &piecemeal{make(chan string), io.EOF}
	api := unguarded(&fakeEngine{output: out}, nil, &testenv.Log{})
	api.writeGrace = 200 * time.Millisecond
	srv := httptest.NewServer(&gate{api, Access{}})
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/sandboxes/" + knownID + "/execs/" + knownExec + "/output?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	gave := make(chan struct{})
	go func() {
		defer close(gave)
		for {
			select {
			case out.pieces <- strings.Repeat("x", 32<<10):
			case <-time.After(2 * time.Second): // nobody reads it any more
				return
			}
		}
	}()
	<-gave
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("what was broken off looks like an end")
	}
}
