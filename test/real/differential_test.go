package real

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emberd/emberd/internal/daemon"
	"github.com/emberd/emberd/internal/pack"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/sandbox"
)

// programs are what the differential test runs, NAME.py and NAME.js, with the
// input of those that have a NAME.in.
//
//go:embed testdata/differential
var programs embed.FS

// Programs cannot tell whether their interpreter was started ahead: output and
// exit are those of a pack that is the same but for its warm-up.
func TestWarmInterpreterIsThePlainOne(t *testing.T) {
	languages := []string{"python", "node"}
	h := newHost(t, func(cfg *daemon.Config) {
		for _, name := range languages {
			addPlainPack(t, cfg.DataDir, name)
		}
	})
	for _, language := range languages {
		t.Run(language, func(t *testing.T) { h.compare(t, language) })
	}
}

// attempts is how often a program is run until it gets an interpreter that was
// started ahead: there may be none yet after the program before it, and on a busy
// host it takes as long as some plain ones.
const attempts = 10

// compare runs the programs of a language in its pack and in the plain one. Node
// starts twice for each program, which is some ten seconds in the machine: every
// other of its programs has to do, but for a long run.
func (h *host) compare(t *testing.T, language string) {
	warm, plain := h.create(t, language), h.create(t, language+plainSuffix)
	step := 1
	if language == "node" {
		step = span(2, 1)
	}
	var count int
	var took [2]time.Duration
	for files := range slices.Chunk(list(t, language), step) {
		file := files[0]
		program := load(t, language, file)
		got := h.tell(t, warm, program)
		for n := 1; n < attempts && !got.warm; n++ {
			got = h.tell(t, warm, program)
		}
		want := h.tell(t, plain, program)
		count++
		took[0], took[1] = took[0]+got.took, took[1]+want.took
		if !got.warm || want.warm {
			t.Errorf("%s ran in a warm interpreter: %v, and with the plain pack: %v", file, got.warm, want.warm)
		}
		if got.said != want.said {
			t.Errorf("%s: a warm interpreter's\n%s\na plain one's\n%s", file, got.said, want.said)
		}
	}
	t.Logf("%d programs: %v, plain %v", count, took[0], took[1])
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

func list(t *testing.T, language string) []string {
	t.Helper()
	entries, err := fs.ReadDir(programs, path.Join("testdata/differential", language))
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

func load(t *testing.T, language, file string) sandbox.ExecRequest {
	t.Helper()
	name := path.Join("testdata/differential", language, file)
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

func (s said) String() string {
	return fmt.Sprintf("%.2000s\n%.2000s\nexit %d", s.Stdout, s.Stderr, s.ExitCode)
}

type ran struct {
	said said
	warm bool
	took time.Duration
}

// chance is what differs between two runs of any interpreter: addresses, and
// node's process id.
var chance = regexp.MustCompile(`0x[0-9a-f]{6,}|\(node:[0-9]+\)`)

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
