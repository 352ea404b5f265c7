// Package config gives a program's settings to it from wherever an operator
// put them: a flag, an environment variable or a file of TOML.
//
// The one idea: the flags are the table of settings. What a setting is called in
// the file and in the environment follows from the name of its flag
// (--max-memory, max-memory, EMBERD_MAX_MEMORY), and the help, the commented
// sample and the reference are written from the same flags; so there is no
// second list to keep in step.
//
// A flag beats the environment, which beats the file, which beats the default.
// What is in the file and no setting is an error that names the line: a slip
// there would else be a limit that nobody holds.
//
// The package does not know what the settings mean, and none of them is a
// secret: what it tells, it tells to everybody.
package config

import (
	"fmt"
	"iter"
	"strings"

	"github.com/spf13/pflag"
)

// A Table is the settings of a program, in sections. It is for one goroutine.
type Table struct {
	prefix   string
	sections []section
	from     map[string]origin
}

// section is the settings that an operator thinks of together.
type section struct {
	title string
	flags *pflag.FlagSet
}

// Source is the kind of place that a value comes from.
type Source string

// The sources, in the order of what beats what.
const (
	FromFlag        Source = "flag"
	FromEnvironment Source = "environment"
	FromFile        Source = "file"
	FromDefault     Source = "default"
)

// origin is where a value comes from, and the place as an operator looks for it.
type origin struct {
	source Source
	place  string
}

// NewTable returns a table without settings. Their environment variables begin
// with prefix.
func NewTable(prefix string) *Table {
	return &Table{prefix: prefix, from: make(map[string]origin)}
}

// Section adds a section and returns the flags that the caller puts its settings
// in.
func (t *Table) Section(title string) *pflag.FlagSet {
	f := pflag.NewFlagSet(title, pflag.ContinueOnError)
	f.SortFlags = false
	t.sections = append(t.sections, section{title, f})
	return f
}

// The annotations of a flag whose default depends on the host.
const (
	ruleOf    = "rule"
	exampleOf = "example"
)

// Derive says that the default of the setting called name is made from the host
// or from other settings, by rule, which is what is said of it everywhere: help
// and files are the same on every host. In the sample, example stands for it, as
// TOML.
func (t *Table) Derive(name, rule, example string) {
	f := t.lookup(name)
	f.Annotations = map[string][]string{ruleOf: {rule}, exampleOf: {example}}
	f.Usage += "; by default " + rule
	if f.DefValue = ""; kindOf(f) == kindNumber {
		f.DefValue = "0"
	}
}

// rule is how the default of f is made, "" if it is the same everywhere.
func rule(f *pflag.Flag) string { return strings.Join(f.Annotations[ruleOf], "") }

// All returns the settings as flags, in order.
func (t *Table) All() iter.Seq[*pflag.Flag] {
	return func(yield func(*pflag.Flag) bool) {
		for _, s := range t.sections {
			more := true
			s.flags.VisitAll(func(f *pflag.Flag) { more = more && yield(f) })
			if !more {
				return
			}
		}
	}
}

// lookup returns the setting called name, nil if there is none.
func (t *Table) lookup(name string) *pflag.Flag {
	for f := range t.All() {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// AddTo makes the settings flags of f.
func (t *Table) AddTo(f *pflag.FlagSet) {
	for _, s := range t.sections {
		f.AddFlagSet(s.flags)
	}
}

// Usage is the flags as help shows them, section by section.
func (t *Table) Usage() string {
	var b strings.Builder
	for _, s := range t.sections {
		_, _ = fmt.Fprintf(&b, "\n%s:\n%s", s.title, s.flags.FlagUsages())
	}
	return b.String()
}

// Given tells whether the setting called name has been given at all, in whatever
// way, rather than left at its default.
func (t *Table) Given(name string) bool { return t.lookup(name).Changed }

// variable is the environment variable of a setting.
func (t *Table) variable(name string) string {
	return t.prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
