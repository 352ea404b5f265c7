// Package archtest keeps the import direction drawn in docs/ARCHITECTURE.md
// true. It has no code outside tests.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/emberd/emberd/"

// rank orders the packages of this module. A package may import only packages
// of a lower rank; the longest matching prefix wins. A new folder needs a line
// here and one in docs/ARCHITECTURE.md.
var rank = map[string]int{
	"internal/x": 0, "internal/version": 0, "internal/archtest": 0, "internal/testenv": 0,
	"internal/sandbox": 1, "api": 1, "packs": 1, "kernel": 1,
	"internal/vsock": 2, "internal/paths": 2, "internal/kernel": 2, "internal/debstrap": 2, "internal/telemetry": 2, "internal/audit": 2, "internal/config": 2, "client": 2,
	"internal/apikey": 3, "internal/pack": 3, "internal/firecracker": 3, "internal/jail": 3, "internal/store": 3, "internal/agent": 3, "internal/egress": 3,
	"internal/provision": 4, "internal/provision/template": 5, "internal/provision/pool": 6,
	"internal/engine": 7,
	"internal/bench":  8, "internal/httpapi": 8, "internal/doctor": 8, "internal/machine": 8, "internal/setup": 8,
	"internal/daemon": 9, "internal/daemon/daemontest": 8, "internal/support": 9, "cmd": 10,

	// Inside the guest the same numbers mean the same thing.
	"internal/guest/boot": 2, "internal/guest/reaper": 2, "internal/guest/execs": 2,
	"internal/guest/identity": 3, "internal/guest/proc": 3, "internal/guest/warm": 4,
	"internal/guest/server": 5, "internal/guest/machine": 6,
	"internal/agent/agenttest":    7, // runs the real guest in the test process
	"internal/firecracker/fctest": 8,
}

// banned lists edges that rank alone would allow, with the reason to print.
var banned = []struct{ from, to, why string }{
	{"internal/engine", "internal/firecracker", "the engine asks a Provisioner for a VM, never the VMM"},
	{"internal/httpapi", "internal/engine", "the API declares the methods it needs"},
	{"internal/firecracker", "internal/jail", "the VMM asks for a Launcher"},
	{"internal/jail", "internal/firecracker", "the jail starts what it is told"},
	{"cmd/emberctl", "internal/engine", "the CLI reaches the daemon through client"},
	{"cmd/emberctl", "internal/daemon", "the CLI reaches the daemon through client"},
}

// guestMay lists what code inside the VM may import; every host package is
// foreign to it, and it is foreign to every host package.
var guestMay = []string{"internal/guest", "internal/x", "internal/vsock", "internal/version", "api/agent"}

// The test parses files itself rather than running "go list": the go command
// caches a passing result by the files the test opened, and cannot see those
// opened by a child process.
func TestImportDirection(t *testing.T) {
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if to, ok := strings.CutPrefix(imp, module); ok {
				checkEdge(t, filepath.ToSlash(rel), to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkEdge(t *testing.T, from, to string) {
	t.Helper()
	if f, g := rankOf(t, from), rankOf(t, to); g >= f {
		t.Errorf("%s (rank %d) imports %s (rank %d)", from, f, to, g)
	}
	for _, b := range banned {
		if strings.HasPrefix(from, b.from) && strings.HasPrefix(to, b.to) {
			t.Errorf("%s imports %s: %s", from, to, b.why)
		}
	}
	inGuest := under(from, "internal/guest") || under(from, "cmd/emberd-init")
	switch {
	case strings.HasSuffix(to, "test") && !strings.HasSuffix(from, "test"):
		t.Errorf("%s imports %s: test support stays out of the binaries", from, to)
	case inGuest && !underAny(to, guestMay):
		t.Errorf("%s imports %s: host and guest share the protocol and nothing else", from, to)
	case !inGuest && under(to, "internal/guest") && !strings.HasSuffix(from, "test"):
		t.Errorf("%s imports %s: guest code never runs on the host", from, to)
	}
}

// under reports whether path is dir or lies below it.
func under(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func underAny(path string, dirs []string) bool {
	for _, dir := range dirs {
		if under(path, dir) {
			return true
		}
	}
	return false
}

func rankOf(t *testing.T, path string) int {
	t.Helper()
	best := ""
	for p := range rank {
		if under(path, p) && len(p) > len(best) {
			best = p
		}
	}
	if best == "" {
		t.Errorf("%s has no rank", path)
	}
	return rank[best]
}
