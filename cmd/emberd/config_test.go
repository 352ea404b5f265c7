package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/emberd/emberd/internal/config"
)

var update = flag.Bool("update", false, "write the sample and the reference anew")

// TestWritten keeps what is written from the settings in step with them.
func TestWritten(t *testing.T) {
	table := newProgram().settings
	for _, tt := range []struct {
		path, after string
		write       func(*bytes.Buffer) error
	}{
		{"../../packaging/emberd.toml", "makes them.\n", func(b *bytes.Buffer) error { return table.WriteSample(b) }},
		{"../../docs/CONFIG.md", "## Every key\n", func(b *bytes.Buffer) error { return table.WriteReference(b) }},
	} {
		got, err := os.ReadFile(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		head, _, ok := strings.Cut(string(got), tt.after)
		if !ok {
			t.Fatalf("%s has no %q", tt.path, tt.after)
		}
		want := bytes.NewBufferString(head + tt.after)
		if err := tt.write(want); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(got, want.Bytes()) {
			continue
		}
		if !*update {
			t.Errorf("%s is not what the settings are; go test ./cmd/emberd -update writes it", tt.path)
		} else if err := os.WriteFile(tt.path, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSampleIsTheDefaults takes every # from the sample and reads it: each value
// is that of an emberd that was told nothing, unless the host decides it.
func TestSampleIsTheDefaults(t *testing.T) {
	text, err := os.ReadFile("../../packaging/emberd.toml")
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile(`(?m)^#([a-z0-9-]+ = )`)
	path := write(t, keys.ReplaceAllString(string(text), "$1"))
	p := newProgram()
	if err := p.settings.Load(path, func(string) string { return "" }); err != nil {
		t.Fatal(err)
	}
	all := p.settings.Explain()
	if n := len(keys.FindAll(text, -1)); n != len(all) {
		t.Errorf("the sample has %d keys, there are %d", n, len(all))
	}
	derived := 0
	for _, s := range all {
		if s.Source != config.FromFile {
			t.Errorf("%s is from %s", s.Key, s.Source)
		}
		if !regexp.MustCompile(`^(\d+|true|false|".*"|\[.*\])$`).MatchString(s.Default) {
			derived++ // the default is said in words
		} else if s.Value != s.Default {
			t.Errorf("%s is %s, and %s by default", s.Key, s.Value, s.Default)
		}
	}
	if derived != 5 {
		t.Errorf("%d defaults are made from something", derived)
	}
}

// Whatever is given is where the daemon looks for it.
func TestSettingsReachTheDaemon(t *testing.T) {
	t.Setenv("EMBERD_RUN_DIR", "/tmp/run")
	t.Setenv("EMBERD_MAX_VCPUS", "7")
	t.Setenv("EMBERD_POOL", "shell=1,python=2:3")
	p := newProgram()
	p.file = write(t, "max-vcpus = 5\nmax-memory = 1024\nallow-host = [\"a\", \"b\"]\nlog-level = \"debug\"\n")
	if err := p.load(); err != nil {
		t.Fatal(err)
	}
	c := p.cfg
	if c.Limits.Ceiling.VCPUs != 7 || c.Limits.Ceiling.MemoryMiB != 1024 || len(c.AllowHosts) != 2 || p.log.level.String() != "DEBUG" {
		t.Errorf("got %+v, %v", c, p.log.level)
	}
	if c.Socket != "/tmp/run/emberd.sock" {
		t.Errorf("the socket did not follow the run directory: %s", c.Socket)
	}
	if c.Pool["shell"].Max != 2 || c.Pool["python"].Max != 3 {
		t.Errorf("pool %v", c.Pool)
	}
}

func TestConfigCommands(t *testing.T) {
	good := write(t, "max-memory = 4096\n")
	bad := write(t, "\nmax-memroy = 4096\nboot-timeout = 5\n")
	for _, tt := range []struct {
		args  []string
		fails bool
		want  string
	}{
		{[]string{"config", "check", good}, false, good + " is fine"},
		{[]string{"config", "check", bad}, true, bad + `:2: unknown key "max-memroy"; did you mean max-memory?`},
		{[]string{"config", "check", bad}, true, bad + `:3: boot-timeout: takes text in quotes`},
		{[]string{"config", "check", bad, "--json"}, true, `"ok":false`},
		{[]string{"config", "check", write(t, "default-memory = 65536\n")}, true, "memory"},
		{[]string{"config", "check", "/nonexistent"}, true, "no such file"},
		{[]string{"config", "explain", "--config", good, "max-memory"}, false, "from " + good + ":1; the default is 32768"},
		{[]string{"config", "explain", "--config", good, "--max-memory", "2048", "max-memory"}, false, "max-memory = 2048"},
		{[]string{"config", "explain", "--config", good, "--json"}, false, `"variable": "EMBERD_MAX_MEMORY"`},
		{[]string{"config", "explain", "nonsense"}, true, "no setting"},
		{[]string{"config", "explain", "--config", "/nonexistent"}, true, "no such file"},
		{[]string{"--help"}, false, "What a sandbox may ask for:\n      --max-vcpus"},
		{[]string{"config", "explain", "--help"}, false, "--json            print JSON"},
	} {
		cmd := newCmd()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(tt.args)
		err := cmd.ExecuteContext(t.Context())
		if err != nil {
			out.WriteString(err.Error())
		}
		if (err != nil) != tt.fails || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%v: %v\n%s", tt.args, err, out.String())
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "emberd.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// What may be reached is what was said, and what is none of it is refused.
func TestEgressSettings(t *testing.T) {
	p := newProgram()
	p.file = write(t, "egress = false\negress-ranges = [\"10.1.2.3/16\", \"fd00::1\"]\negress-dns = [\"203.0.113.53\", \"[2001:db8::53]:5353\"]\negress-ipv6 = true\negress-total-mib = 7\n")
	if err := p.load(); err != nil {
		t.Fatal(err)
	}
	e := p.cfg.Egress
	if got := fmt.Sprint(e.On, e.Ranges, e.DNS, e.IPv6, e.Limits.TotalMiB); got != "false [10.1.0.0/16 fd00::1/128] [203.0.113.53:53 [2001:db8::53]:5353] true 7" {
		t.Errorf("got %s", got)
	}
	p = newProgram()
	t.Setenv("EMBERD_EGRESS_RANGES", "10.1.0.0/16,10.2.0.0/16")
	if err := p.load(); err != nil || len(p.cfg.Egress.Ranges) != 2 || !p.cfg.Egress.On {
		t.Errorf("got %+v, %v", p.cfg.Egress, err)
	}
	for _, line := range []string{
		`egress-ranges = ["10.1.0.0/33"]`, `egress-ranges = ["example.org"]`, `egress-ranges = ["::ffff:10.0.0.0/104"]`, `egress-ranges = [""]`,
		`egress-dns = ["dns.example.org"]`, `egress-dns = ["203.0.113.53:0"]`, `egress-dns = ["0.0.0.0"]`, `egress-dns = "203.0.113.53"`,
		`egress-rate-kib-s = 0`, `egress-rate-kib-s = -1`, `egress-total-mib = 99999999999`, `egress = "yes"`,
	} {
		cmd := newCmd()
		cmd.SetOut(io.Discard)
		cmd.SetArgs([]string{"config", "check", write(t, line+"\n")})
		if cmd.ExecuteContext(t.Context()) == nil {
			t.Errorf("%s is fine", line)
		}
	}
}
