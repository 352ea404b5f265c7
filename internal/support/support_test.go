package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/doctor"
	"github.com/emberd/emberd/internal/paths"
)

// planted are secrets as they may come to stand in what is collected. Each has the
// word hush in it, and nothing else has.
var planted = []string{
	"emb_aaaaaaaa_hushhushhushhushhushhushhushhush_bbbbbbb",
	"Authorization: Bearer hushhushhush",
	`{"authorization": "hush"}`,
	"level=INFO header=\"bearer hush-hush-1\"",
	"https://user:hush@example.net/x",
	"EMBERD_API_KEY=hush", "AWS_SECRET_ACCESS_KEY=hush", "token: hush", `"password":"hush and hush"`, "db_passwd=hush,ro", "api-key = 'hush hush'",
	"-----BEGIN EC PRIVATE KEY-----\nhush1\nhush2\n-----END EC PRIVATE KEY-----",
	"-----BEGIN PRIVATE KEY-----\nhush",
}

// guestSaid is how a log may quote a guest.
var guestSaid = []string{
	`level=WARN msg="boot failed" err="it is silent\nconsole: hush\nhush"`,
	`level=WARN msg="a VMM has ended" vm=vm-1 console="hush hush"`,
	`{"level":"WARN","err":"it is silent\nconsole: hush","vm":"vm-1"}`,
	`{"level":"WARN","console":"hush"}`,
}

func bundle(t *testing.T, cfg Config) (parts []Part, files map[string]string) {
	t.Helper()
	var b bytes.Buffer
	parts, err := Write(t.Context(), &b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if path.Dir(h.Name) != "emberd-support-20250102-030405" || h.Mode != 0o600 {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		files[path.Base(h.Name)] = string(text)
	}
	return parts, files
}

// config is a daemon and a host that tell whatever text is.
func config(t *testing.T, text string, status int) Config {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		switch r.URL.Path {
		case "/metrics":
			_, _ = io.WriteString(w, "emberd_vmms 7\n"+text)
		case "/info":
			_, _ = io.WriteString(w, `{"kvm":"hardware"}`)
		default:
			_, _ = io.WriteString(w, `{}`)
		}
	}))
	t.Cleanup(srv.Close)
	told := func(what string) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return []byte(what + "\n" + text), nil }
	}
	env := doctor.NewEnv(paths.Data(t.TempDir()), paths.Run(t.TempDir()))
	env.Host = fstest.MapFS{
		"proc/cmdline": {Data: []byte("console=ttyS0 quiet\n" + text)}, "proc/version": {Data: []byte("Linux version 6.1\n")},
		"proc/cpuinfo":         {Data: []byte("model name: one\n\nmodel name: two\n")},
		"proc/self/mountinfo":  {Data: []byte("22 1 0:20 / /proc rw - proc none rw\n")},
		"proc/meminfo":         {Data: []byte("MemTotal: 4096 kB\n")},
		"run/whatever/is/here": {Data: []byte(text)},
	}
	env.Versions = func(context.Context, string, string) (string, error) { return "1.16.1", nil }
	return Config{
		Client: client.New(srv.URL), Doctor: env, Settings: told("max-memory = 1"), Log: told("level=INFO msg=\"emberd is ready\""),
		Now: func() time.Time { return time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC) },
	}
}

func TestNoSecretGetsIntoABundle(t *testing.T) {
	_, files := bundle(t, config(t, strings.Join(append(planted, ""), "\n"), http.StatusOK))
	for name, text := range files {
		if i := strings.Index(text, "hush"); i >= 0 {
			t.Errorf("%s holds a secret: …%s", name, text[max(0, i-60):i+4])
		}
	}
	for name, want := range map[string]string{
		"metrics.txt": "emberd_vmms 7", "info.json": `"kvm": "hardware"`, "settings.txt": "max-memory = 1", "log.txt": "emberd is ready",
		"host.txt": "console=ttyS0 quiet", "versions.txt": "firecracker 1.16.1", "doctor.json": `"name": "kvm"`,
		"README.txt": "Look at it before you send it", "events.json": `"events"`, "stats.json": "{", "templates.json": "",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s does not say %q:\n%s", name, want, files[name])
		}
	}
	if strings.Contains(files["host.txt"], "model name: two") {
		t.Error("more than the first processor is described")
	}
}

func TestNothingThatGuestsSaidGetsIntoABundle(t *testing.T) {
	_, files := bundle(t, func() Config {
		cfg := config(t, "", http.StatusOK)
		cfg.Log = func(context.Context) ([]byte, error) {
			return []byte(strings.Join(guestSaid, "\n") + "\nlevel=INFO msg=next\n"), nil
		}
		return cfg
	}())
	if log := files["log.txt"]; strings.Contains(log, "hush") || strings.Count(log, "level") != 5 || !strings.Contains(log, "it is silent") {
		t.Errorf("the log is\n%s", log)
	}
}

// What cannot be had is said, and the rest is there.
func TestBundleWithoutADaemon(t *testing.T) {
	cfg := config(t, "", http.StatusInternalServerError)
	cfg.Settings = Settings(paths.Run(t.TempDir()), "/nonexistent/emberd")
	cfg.Log = Log(filepath.Join(t.TempDir(), "none"), "")
	parts, files := bundle(t, cfg)
	for _, p := range parts {
		missing := p.Name == "info.json" || p.Name == "stats.json" || p.Name == "templates.json" || p.Name == "events.json" ||
			p.Name == "metrics.txt" || p.Name == "log.txt" || p.Name == "settings.txt"
		if (p.Err != nil) != missing || strings.Contains(files[p.Name], "not to be had") != missing {
			t.Errorf("%s: %v\n%s", p.Name, p.Err, files[p.Name])
		}
	}
}

func TestLongLogIsCut(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	line := strings.Repeat("x", 99) + "\n"
	if err := os.WriteFile(file, []byte("first\n"+strings.Repeat(line, maxSection/100+10)+"last\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Log(file, "")(t.Context())
	if err != nil || len(b) > maxSection || len(b) < maxSection-100 || !bytes.HasPrefix(b, []byte(line)) || !bytes.HasSuffix(b, []byte("last\n")) {
		t.Errorf("%d bytes, %v, beginning with %.20q", len(b), err, b)
	}
}
