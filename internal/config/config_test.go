package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// example is a table with a setting of each kind.
type example struct {
	table *Table
	name  string
	count int
	wait  time.Duration
	fast  bool
	ids   []uint
	hosts []string
}

func newExample() *example {
	e := &example{table: NewTable("TEST_")}
	f := e.table.Section("First")
	f.StringVar(&e.name, "name", "nobody", "who it is")
	f.IntVar(&e.count, "max-count", 3, "how many there may be")
	f = e.table.Section("Second")
	f.DurationVar(&e.wait, "wait", time.Hour, "how long to wait")
	f.BoolVar(&e.fast, "fast", true, "hurry")
	f.UintSliceVar(&e.ids, "id", nil, "an id")
	f.StringSliceVar(&e.hosts, "host", []string{"a"}, "a host")
	return e
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// TestPrecedence gives one setting in every combination of ways.
func TestPrecedence(t *testing.T) {
	for n := range 8 {
		e := newExample()
		path, getenv, want, source := "", env(), 3, FromDefault
		if n&1 != 0 {
			path, want, source = write(t, "max-count = 10"), 10, FromFile
		}
		if n&2 != 0 {
			getenv, want, source = env("TEST_MAX_COUNT", "20"), 20, FromEnvironment
		}
		if n&4 != 0 {
			want, source = 30, FromFlag
			if err := e.table.sections[0].flags.Parse([]string{"--max-count", "30"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.table.Load(path, getenv); err != nil {
			t.Fatal(err)
		}
		s := e.table.Explain()[1]
		if e.count != want || s.Source != source || s.Default != "3" || e.table.Given("max-count") != (n > 0) {
			t.Errorf("%03b: got %d from %s, want %d from %s", n, e.count, s.Source, want, source)
		}
	}
}

func TestKinds(t *testing.T) {
	e := newExample()
	path := write(t, `
name = "it's me"
wait = "90s"
fast = false
id = [1, 2]
host = ["x", "y:80"]
`)
	if err := e.table.Load(path, env("TEST_NAME", "", "TEST_HOST", "p,q")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range e.table.Explain() {
		got = append(got, s.Key+" = "+s.Value+" "+strings.TrimPrefix(s.Place, path))
	}
	want := []string{
		`name = "it's me" :2`, `max-count = 3 `, `wait = "1m30s" :3`, `fast = false :4`, `id = [1, 2] :5`, `host = ["p", "q"] TEST_HOST`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		text, want string
	}{
		{"\nmax_count = 1", `:2: unknown key "max_count"; did you mean max-count?`},
		{"\n\nMax-Cuont = 1", `:3: unknown key "Max-Cuont"; did you mean max-count?`},
		{"something-else-entirely = 1", "unknown key \"something-else-entirely\"; `emberd config explain` lists"},
		{"name = 'a'\nname = 'b'", ":2: "},
		{"name = ", ":1: "},
		{"name = \"a", ":1: "},
		{"[table]\nname = 'a'", `:1: unknown key "table"`},
		{"name.first = 'a'", ":1: name: takes text"},
		{"name = 1", ":1: name: takes text in quotes"},
		{"max-count = '1'", ":1: max-count: takes a whole number"},
		{"max-count = 1.5", ":1: max-count: takes a whole number"},
		{"max-count = 99999999999999999999", ":1: "},
		{"fast = 'true'", ":1: fast: takes true or false"},
		{"wait = 5", ":1: wait: takes text"},
		{"wait = 'soon'", `:1: wait: time: invalid duration "soon"`},
		{"id = 5", ":1: id: takes a list"},
		{"id = [-5]", ":1: id: "},
		{"host = [true]", ":1: host: true is none of what may be in the list"},
		{"max-coun = 1\nwait = 5", ":2: wait: takes text"}, // not only the first
	} {
		path := write(t, tt.text)
		err := newExample().table.Load(path, env())
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %s", tt.text, err, tt.want)
		}
	}
	if err := newExample().table.Load("", env("TEST_WAIT", "soon")); err == nil || !strings.Contains(err.Error(), "TEST_WAIT: ") {
		t.Errorf("environment: %v", err)
	}
}

// A line of the file that is wrong is told even if another source wins.
func TestOverriddenLineIsChecked(t *testing.T) {
	if err := newExample().table.Load(write(t, "max-count = 'x'"), env("TEST_MAX_COUNT", "1")); err == nil {
		t.Error("the line was taken")
	}
}

func TestSample(t *testing.T) {
	e := newExample()
	e.table.Derive("name", "whoever asks", `"me"`)
	var b strings.Builder
	if err := e.table.WriteSample(&b); err != nil {
		t.Fatal(err)
	}
	const want = `

## First

# Who it is; by default whoever asks.
#name = "me"

# How many there may be.
#max-count = 3


## Second

# How long to wait.
#wait = "1h"

# Hurry.
#fast = true

# An id.
#id = []

# A host.
#host = ["a"]
`
	if b.String() != want {
		t.Errorf("got %s", b.String())
	}
}

func FuzzFile(f *testing.F) {
	f.Add("name = 'a'\nid = [1]\n[x]\n")
	f.Fuzz(func(_ *testing.T, text string) {
		_ = newExample().table.loadFile("file", []byte(text))
	})
}
