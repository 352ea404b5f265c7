package pack

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestDefinitions(t *testing.T) {
	defs, err := Definitions()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]struct {
		interpreter string
		limit       int64
	}{"node": {"node", 60}, "python": {"python3", 45}, "shell": {"/bin/sh", 20}}
	if len(defs) != len(want) {
		t.Errorf("got %d definitions, want %d", len(defs), len(want))
	}
	digests := map[string]bool{}
	for _, d := range defs {
		w := want[d.Name]
		if d.Interpreter != w.interpreter || d.SizeLimitMB != w.limit {
			t.Errorf("%s: got %s, %d MB; want %s, %d MB", d.Name, d.Interpreter, d.SizeLimitMB, w.interpreter, w.limit)
		}
		digests[d.Digest()] = true
	}
	if len(digests) != len(defs) {
		t.Error("two definitions have the same digest")
	}
	if _, err := Find(defs, "ruby"); err == nil || !strings.Contains(err.Error(), "node, python, shell") {
		t.Errorf("Find(ruby): got %v, want the names there are", err)
	}
}

const (
	baseTOML = "suite = \"bookworm\"\npackages = [\"dash\"]\n[files]\n\"etc/a\" = \"base\"\n\"etc/b\" = \"base\"\n"
	ownTOML  = "name = \"x\"\ninterpreter = \"sh\"\nsize_limit_mb = 1\npackages = [\"sed\"]\n[files]\n\"etc/a\" = \"own\"\n"
)

var scripts = fstest.MapFS{"x/start.py": {Data: []byte("start()\n")}}

const warmTOML = "\n[warm]\nkind = \"forkserver\"\nargv = [\"env\", \"A=/b\", \"sh\", \"\"]\n[scripts]\n\"usr/start.py\" = \"x/start.py\"\n"

func TestDefinitionOfAWarmUp(t *testing.T) {
	parse := func(script string) Definition {
		t.Helper()
		files := fstest.MapFS{"x/start.py": {Data: []byte(script)}}
		d, err := parseDefinition(files, []byte(baseTOML), []byte(ownTOML+warmTOML))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := parse("start()\n")
	if d.Warm.Kind != ForkServer || len(d.Warm.Argv) != 4 || d.Files["usr/start.py"] != "start()\n" || d.CodeFlag != "-c" {
		t.Errorf("got %+v", d)
	}
	if parse("stop()\n").Digest() == d.Digest() {
		t.Error("another script has the same digest")
	}
	if parse("start()\n").Digest() != d.Digest() {
		t.Error("the same script has another digest")
	}
}

func TestDefinitionIncludesBase(t *testing.T) {
	d, err := parseDefinition(scripts, []byte(baseTOML), []byte(ownTOML))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(d.Packages, " "); got != "dash sed" {
		t.Errorf("got packages %q", got)
	}
	if d.Files["etc/a"] != "own" || d.Files["etc/b"] != "base" || d.Suite != "bookworm" {
		t.Errorf("got %+v", d)
	}
	other, err := parseDefinition(scripts, []byte(baseTOML+"# changed\n"), []byte(ownTOML))
	if err != nil {
		t.Fatal(err)
	}
	if other.Digest() == d.Digest() {
		t.Error("another base has the same digest")
	}
}

func TestDefinitionRefuses(t *testing.T) {
	tests := map[string]struct{ own, want string }{
		"unknown field":   {"colour = 1\n" + ownTOML, "colour"},
		"no TOML":         {"name", ""},
		"name":            {strings.Replace(ownTOML, `"x"`, `"../x"`, 1), "invalid name"},
		"interpreter":     {strings.Replace(ownTOML, `"sh"`, `"sh init=/evil"`, 1), "invalid interpreter"},
		"no interpreter":  {strings.Replace(ownTOML, `"sh"`, `""`, 1), "invalid interpreter"},
		"no limit":        {strings.Replace(ownTOML, "= 1", "= 0", 1), "no size limit"},
		"file outside":    {ownTOML + "\"../etc/passwd\" = \"\"\n", "not inside the image"},
		"link outside":    {ownTOML + "[links]\n\"/bin/sh\" = \"dash\"\n", "not inside the image"},
		"dir outside":     {ownTOML + "[[directories]]\npath = \"..\"\n", "not inside the image"},
		"mode":            {ownTOML + "[[directories]]\npath = \"a\"\nmode = 0o70000\n", "invalid mode"},
		"remove outside":  {ownTOML + "[[remove]]\nwhy = \"x\"\npaths = [\"../*\"]\n", "invalid pattern"},
		"bad pattern":     {ownTOML + "[[remove]]\nwhy = \"x\"\npaths = [\"a[\"]\n", "invalid pattern"},
		"remove no why":   {ownTOML + "[[remove]]\npaths = [\"a\"]\n", "no reason"},
		"code flag":       {"code_flag = \"-c init=/evil\"\n" + ownTOML, "invalid flag"},
		"warm-up kind":    {ownTOML + strings.Replace(warmTOML, "forkserver", "magic", 1), "invalid kind"},
		"warm-up no argv": {ownTOML + "[warm]\nkind = \"prestart\"\n", "without argv"},
		"warm-up comma":   {ownTOML + strings.Replace(warmTOML, "/b", "/b,c", 1), "invalid argument"},
		"warm-up space":   {ownTOML + strings.Replace(warmTOML, "/b", "/b c", 1), "invalid argument"},
		"warm-up long":    {ownTOML + strings.Replace(warmTOML, "/b", strings.Repeat("b", 600), 1), "more than 512"},
		"warm-up watch":   {ownTOML + strings.Replace(warmTOML, "[scripts]", "watch = [\"lib\"]\n[scripts]", 1), "invalid path"},
		"no such script":  {ownTOML + strings.Replace(warmTOML, "x/start", "x/stop", 1), "script usr/start.py"},
		"script outside":  {ownTOML + strings.Replace(warmTOML, "usr/start", "../start", 1), "not inside the image"},
		"command no argv": {ownTOML + "[[commands]]\nargv = []\n", "without argv"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parseDefinition(scripts, []byte(baseTOML), []byte(tt.own))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestDefinitionFileIsNamedAfterPack(t *testing.T) {
	_, err := readDefinitions(fstest.MapFS{
		"base.toml": {Data: []byte(baseTOML)},
		"y.toml":    {Data: []byte(ownTOML)},
	})
	if err == nil || !strings.Contains(err.Error(), "y.toml") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}
