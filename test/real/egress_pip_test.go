package real

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/client"
	"github.com/emberd/emberd/internal/testenv/internet"
)

// wheel is a Python package of one module, which says where it is from.
func wheel(t *testing.T) []byte {
	t.Helper()
	files := []struct{ name, text string }{
		{"tiny/__init__.py", "ORIGIN = 'the test'\n"},
		{"tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"},
		{"tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	}
	record := "tiny-1.0.dist-info/RECORD,,\n"
	for _, f := range files {
		sum := sha256.Sum256([]byte(f.text))
		record += fmt.Sprintf("%s,sha256=%s,%d\n", f.name, base64.RawURLEncoding.EncodeToString(sum[:]), len(f.text))
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range append(files, struct{ name, text string }{"tiny-1.0.dist-info/RECORD", record}) {
		w, err := z.Create(f.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// packageIndex has one host list packages, and another one serve them.
func packageIndex(t *testing.T, n *internet.Internet) {
	t.Helper()
	w := wheel(t)
	const name = "tiny-1.0-py3-none-any.whl"
	n.Host("index.example.org", "203.0.113.60")
	n.Host("files.example.org", "203.0.113.61")
	n.Site("index.example.org", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/simple/tiny/" {
			http.NotFound(rw, r)
			return
		}
		_, _ = fmt.Fprintf(rw, `<!DOCTYPE html><a href="https://files.example.org/packages/%s#sha256=%x">%s</a>`, name, sha256.Sum256(w), name)
	}))
	n.Site("files.example.org", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/packages/" + name:
			_, _ = rw.Write(w)
		case "/more/":
			_, _ = fmt.Fprint(rw, `<!DOCTYPE html>`)
		default:
			http.NotFound(rw, r)
		}
	}))
}

// install is pip, which looks at both hosts.
const install = `
import subprocess, sys
open("/tmp/ca.pem", "w").write(%q)
sys.exit(subprocess.call([
    sys.executable, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--retries", "0", "--timeout", "60", "--progress-bar", "off",
    "--cert", "/tmp/ca.pem", "--index-url", "https://index.example.org/simple", "--find-links", "https://files.example.org/more/", "tiny"]))
`

// A package is installed where its two hosts may be reached, and where they may not,
// both are named, with the rules that are missing; with those it is installed.
func TestPipInstall(t *testing.T) {
	n := newInternet(t)
	packageIndex(t, n)
	h := newHost(t, patient, online)
	id, err := h.Create(t.Context(), "python", client.WithEgress(policy(t, `[]`)))
	if err != nil {
		t.Fatal(err)
	}
	pip := func() client.Result {
		t.Helper()
		began := time.Now()
		res, err := h.Exec(t.Context(), id, client.Program{Code: fmt.Sprintf(install, n.CA.PEM()), Timeout: 10 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("pip ended with %d after %v", res.ExitCode, time.Since(began).Round(time.Millisecond))
		return res
	}
	res := pip()
	if res.ExitCode == 0 || len(n.Sent()) > 0 {
		t.Errorf("without a rule it ends with %d, and %v was sent", res.ExitCode, n.Sent())
	}
	asked := policy(t, `[]`)
	for _, name := range []string{"index.example.org", "files.example.org"} {
		if !isDenied(res.EgressDenied, "no_rule dns "+name) {
			t.Errorf("%s is not among what was denied:\n%s", name, listDenials(res.EgressDenied))
		}
	}
	for _, d := range res.EgressDenied {
		if d.Rule != nil {
			asked.Allow = append(asked.Allow, ruleRequest(*d.Rule))
		}
	}
	if _, err := h.SetEgress(t.Context(), id, asked); err != nil {
		t.Fatal(err)
	}
	if res = pip(); res.ExitCode != 0 || len(res.EgressDenied) > 0 {
		t.Errorf("with its rules it ends with %d:\n%s%s\ndenied:\n%s", res.ExitCode, res.Stdout, res.Stderr, listDenials(res.EgressDenied))
	}
	if got := h.run(t, id, "import tiny; print(tiny.ORIGIN)"); strings.TrimSpace(got) != "the test" {
		t.Errorf("what is installed is from %q", got)
	}
}
