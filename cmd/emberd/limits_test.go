package main

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// The document about limits names every flag there is for them, and the values
// that they have.
func TestLimitsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	flags := newCmd().PersistentFlags()
	flags.VisitAll(func(f *pflag.Flag) {
		for _, prefix := range []string{"default-", "max-", "capacity-"} {
			if strings.HasPrefix(f.Name, prefix) && !strings.Contains(doc, "`--"+f.Name+"`") {
				t.Errorf("--%s is not documented", f.Name)
			}
		}
	})
	row := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| [^|]+ \\| ([^|]+) \\| ([^|]+) \\| `--([a-z-]+)`, `--([a-z-]+)` \\|")
	rows := row.FindAllStringSubmatch(doc, -1)
	if len(rows) != 8 {
		t.Fatalf("%d limits with flags, want 8", len(rows))
	}
	for _, r := range rows {
		for i, flag := range []string{r[4], r[5]} {
			f := flags.Lookup(flag)
			if f == nil {
				t.Errorf("there is no --%s", flag)
				continue
			}
			if got := documented(f.DefValue); got != r[2+i] {
				t.Errorf("--%s is %s, the document says %s", flag, got, r[2+i])
			}
		}
	}
}

// documented is the value of a flag as the document shows it.
func documented(value string) string {
	if d, err := time.ParseDuration(value); err == nil {
		return strconv.Itoa(int(d.Seconds()))
	}
	if n, err := strconv.Atoi(value); err == nil && n >= 1<<20 && n%(1<<20) == 0 {
		return strconv.Itoa(n>>20) + " MiB"
	}
	return value
}
