package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/emberd/emberd/internal/sandbox"
)

func open(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// lines returns what is in a file, whose every line has to be an entry.
func lines(t *testing.T, path string) []Entry {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		t.Fatalf("%s ends in the middle of a line", path)
	}
	var all []Entry
	in := bufio.NewScanner(bytes.NewReader(text))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		if strings.ContainsFunc(in.Text(), unicode.IsControl) {
			t.Errorf("a line has control characters: %q", in.Text())
		}
		var entry Entry
		if err := json.Unmarshal(in.Bytes(), &entry); err != nil {
			t.Fatalf("%q: %v", in.Text(), err)
		}
		all = append(all, entry)
	}
	return all
}

var denied = Entry{
	Time: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC), Event: EgressDenied, Sandbox: "sb_a1b2c3d4e5f6", Pack: "python",
	Denied: &sandbox.EgressDenial{
		Host: "evil.test", Addr: netip.MustParseAddr("203.0.113.7"), Port: 443, Protocol: sandbox.TCP, Reason: sandbox.DeniedNoRule,
		Rule: &sandbox.EgressRule{Host: "evil.test", Ports: []uint16{443}, Protocol: sandbox.TCP}, Count: 2,
	},
}

func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	hostile := denied
	hostile.Denied = &sandbox.EgressDenial{Host: "a\nb\x1b[2J\x00\x7f\u0085\u009b\u2028\xff\"\\", Protocol: sandbox.DNS, Count: 1}
	set := Entry{Event: EgressSet, Sandbox: denied.Sandbox, Egress: &sandbox.Egress{Allow: []sandbox.EgressRule{{Host: "a.b"}}}}
	for _, entry := range []Entry{denied, hostile, set} {
		if err := l.Append(entry); err != nil {
			t.Fatal(err)
		}
	}
	got := lines(t, path)
	if len(got) != 3 || !reflect.DeepEqual(got[0], denied) || !reflect.DeepEqual(got[2], set) {
		t.Errorf("got %+v", got)
	}
	if want := "a\nb\x1b[2J\x00\x7f\u0085\u009b\u2028\uFFFD\"\\"; got[1].Denied.Host != want {
		t.Errorf("got %q, want %q", got[1].Denied.Host, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(denied); err == nil {
		t.Error("a closed log takes a line")
	}
}

// What a daemon left that was killed in the middle of a line does not spoil the
// next one, and lines that were there stay.
func TestGoesOn(t *testing.T) {
	for _, tail := range []string{"", `{"time":"20`, "x"} {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		if err := open(t, path).Append(denied); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(tail); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		if err := open(t, path).Append(denied); err != nil {
			t.Fatal(err)
		}
		if got := lines(t, path); len(got) != 2 || !reflect.DeepEqual(got[0], got[1]) {
			t.Errorf("after %q: %+v", tail, got)
		}
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Append(denied); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, path); len(got) != 1 {
		t.Errorf("got %+v", got)
	}
}

// However much there is to tell, by whomever, it takes two files, and only the
// oldest lines are gone.
func TestIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, path)
	l.most = 8 << 10
	const writers, each = 4, 100
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for i := range each {
				entry := denied
				entry.Others = int64(i) + 1
				if err := l.Append(entry); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	kept := 0
	for _, name := range []string{path, path + olderSuffix} {
		info, err := os.Stat(name)
		if err != nil || info.Size() > l.most {
			t.Fatalf("%s: %d bytes, %v", name, info.Size(), err)
		}
		kept += len(lines(t, name))
	}
	if line := 8 << 10 / 350; kept < line {
		t.Errorf("%d lines are left", kept)
	}
	last := lines(t, path)
	if got := last[len(last)-1].Others; got != each {
		t.Errorf("the last line is number %d of its writer", got)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 2 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

func TestCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "audit") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "no", "such")); err == nil {
		t.Error("nothing to make a file in")
	}
}
