package real

import (
	"embed"
	"encoding/json"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
)

// programs are what the differential test runs: NAME.py, with the input of those
// that have a NAME.in.
//
//go:embed testdata/differential
var programs embed.FS

// Programs cannot tell whether their interpreter was started ahead: output and
// exit are those of a pack that is the same but for its warm-up.
func TestWarmInterpreterIsThePlainOne(t *testing.T) {
	h := newHost(t, func(cfg *daemon.Config) {
		addPlainPack(t, cfg.DataDir, "python")
	})
	warm, plain := h.create(t, "python"), h.create(t, "python"+plainSuffix)
	var count, ahead int
	var took [2]time.Duration
	for _, file := range list(t) {
		program := load(t, file)
		got, want := h.tell(t, warm, program), h.tell(t, plain, program)
		count++
		took[0], took[1] = took[0]+got.took, took[1]+want.took
		if got.warm {
			ahead++
		} else {
			t.Logf("%s ran in a plain interpreter", file)
		}
		if want.warm {
			t.Errorf("%s: the pack without a warm-up has one", file)
		}
		if got.said != want.said {
			t.Errorf("%s: a warm interpreter's\n%+.2000v\na plain one's\n%+.2000v", file, got.said, want.said)
		}
	}
	t.Logf("%d programs, %d of them warm: %v, plain %v", count, ahead, took[0], took[1])
	if ahead < count-count/20 {
		t.Errorf("only %d of %d programs ran in a warm interpreter", ahead, count)
	}
}

const plainSuffix = "-plain"

// addPlainPack adds a copy of the pack called name that has no warm-up.
func addPlainPack(t *testing.T, data paths.Data, name string) {
	t.Helper()
	m, err := pack.ReadManifest(data, name)
	if err != nil {
		t.Fatal(err)
	}
	m.Name, m.Warm = name+plainSuffix, nil
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(data.PackManifest(m.Name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(data.PackRootfs(name), data.PackRootfs(m.Name)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data.PackManifest(m.Name), raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

const programsDir = "testdata/differential/python"

func list(t *testing.T) []string {
	t.Helper()
	entries, err := fs.ReadDir(programs, programsDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if path.Ext(e.Name()) != ".in" {
			names = append(names, e.Name())
		}
	}
	return names
}

func load(t *testing.T, file string) sandbox.ExecRequest {
	t.Helper()
	name := path.Join(programsDir, file)
	code, err := programs.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	in, _ := programs.ReadFile(strings.TrimSuffix(name, path.Ext(name)) + ".in") // few have one
	return sandbox.ExecRequest{Code: string(code), Stdin: in}
}

// said is what a program has to say about itself.
type said struct {
	Stdout, Stderr string
	ExitCode       int
}

type ran struct {
	said said
	warm bool
	took time.Duration
}

// chance is what differs between two runs of any interpreter: addresses.
var chance = regexp.MustCompile(`0x[0-9a-f]{6,}`)

// tell runs p without HTTP, which takes no code but UTF-8.
func (h *host) tell(t *testing.T, id string, p sandbox.ExecRequest) ran {
	t.Helper()
	began := time.Now()
	res, err := h.engine.Exec(t.Context(), sandbox.ID(id), p)
	if err != nil {
		t.Fatal(err)
	}
	if res.Err != "" {
		t.Errorf("%.80q: %s", p.Code, res.Err)
	}
	plain := func(b []byte) string { return chance.ReplaceAllString(string(b), "(chance)") }
	return ran{
		said: said{plain(res.Stdout), plain(res.Stderr), res.ExitCode},
		warm: res.Warm, took: time.Since(began),
	}
}
