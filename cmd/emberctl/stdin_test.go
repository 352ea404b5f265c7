package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInterruptWhileReading checks that Ctrl-C works while standard input does
// not end, and that nothing was asked of the daemon by then.
func TestInterruptWhileReading(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was made") }))
	defer srv.Close()

	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	var stdout, stderr bytes.Buffer
	a := &app{stdin: r, stdout: &stdout, stderr: &stderr}
	if got := a.run(ctx, []string{"--addr", srv.URL, "run", "1"}); got != exitInterrupted {
		t.Errorf("exit status %d, want %d", got, exitInterrupted)
	}
	if got := stderr.String(); got != "emberctl: interrupted\n" || stdout.Len() > 0 {
		t.Errorf("stderr %q, stdout %q", got, stdout.String())
	}
}

// TestReport checks what errors are told as and turned into.
func TestReport(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		says string
	}{
		{errors.New("disk full"), 1, "emberctl: disk full\n"},
		{usageError(errors.New("which one?")), 2, "emberctl: which one?\nhint: emberctl rm --help\n"},
		{&exitError{code: 42}, 42, ""},
		{&exitError{exitEmberd, errors.New("lost")}, 125, "emberctl: lost\n"},
		{&os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}, 141, ""},
	} {
		var out bytes.Buffer
		if got := report(&out, tt.err, "emberctl rm"); got != tt.code || out.String() != tt.says {
			t.Errorf("%v: exit status %d and %q, want %d and %q", tt.err, got, out.String(), tt.code, tt.says)
		}
	}
}

// TestNohup checks that a signal which the process was started to ignore stays
// ignored.
func TestNohup(t *testing.T) {
	if os.Getenv("EMBERCTL_TEST_NOHUP") != "" {
		for _, s := range wanted(syscall.SIGHUP, syscall.SIGTERM) {
			_, _ = io.WriteString(os.Stdout, "wanted "+s.String()+"\n")
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `trap "" HUP; exec "$0" -test.run '^TestNohup$' -test.v`, self)
	cmd.Env = append(os.Environ(), "EMBERCTL_TEST_NOHUP=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if s := string(out); !strings.Contains(s, "wanted terminated") || strings.Contains(s, "wanted hangup") {
		t.Errorf("got\n%s", s)
	}
}
