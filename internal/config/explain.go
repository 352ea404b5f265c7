package config

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Setting is a setting and how it came to have its value. Values are as the file
// has them.
type Setting struct {
	Key      string `json:"key"`
	Section  string `json:"section"`
	Value    string `json:"value"`
	Source   Source `json:"source"`
	Place    string `json:"place,omitempty"` // of the source; none for a default
	Default  string `json:"default"`
	Flag     string `json:"flag"`
	Variable string `json:"variable"`
	Usage    string `json:"usage"`
}

// Explain returns every setting, in order.
func (t *Table) Explain() []Setting {
	var all []Setting
	for _, s := range t.sections {
		s.flags.VisitAll(func(f *pflag.Flag) {
			from := t.from[f.Name]
			all = append(all, Setting{
				Key: f.Name, Section: s.title, Value: written(f, f.Value.String()),
				Source: cmp.Or(from.source, FromDefault), Place: from.place,
				Default: cmp.Or(rule(f), written(f, f.DefValue)),
				Flag:    "--" + f.Name, Variable: t.variable(f.Name), Usage: f.Usage,
			})
		})
	}
	return all
}

// WriteExplained writes settings for a person to read.
func WriteExplained(w io.Writer, settings []Setting) error {
	title := ""
	for _, s := range settings {
		if s.Section != title {
			title = s.Section
			if _, err := fmt.Fprintf(w, "# %s\n\n", title); err != nil {
				return err
			}
		}
		from := "the default: " + s.Default
		if s.Source != FromDefault {
			from = fmt.Sprintf("from %s; the default is %s", s.Place, s.Default)
		}
		if _, err := fmt.Fprintf(w, "%s = %s\n    %s\n    %s\n    %s, %s\n\n",
			s.Key, s.Value, sentence(s.Usage), from, s.Flag, s.Variable); err != nil {
			return err
		}
	}
	return nil
}

// WriteSample writes the file of somebody who changes nothing: every setting,
// commented out, with its default.
func (t *Table) WriteSample(w io.Writer) error {
	for _, s := range t.sections {
		if _, err := fmt.Fprintf(w, "\n\n## %s\n", s.title); err != nil {
			return err
		}
		var err error
		s.flags.VisitAll(func(f *pflag.Flag) {
			value := written(f, f.DefValue)
			if rule(f) != "" {
				value = f.Annotations[exampleOf][0]
			}
			if err == nil {
				_, err = fmt.Fprintf(w, "\n%s#%s = %s\n", comment(sentence(f.Usage)), f.Name, value)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// WriteReference writes the settings as tables of Markdown.
func (t *Table) WriteReference(w io.Writer) error {
	for _, s := range t.sections {
		if _, err := fmt.Fprintf(w, "\n### %s\n\n| key | default | |\n| --- | --- | --- |\n", s.title); err != nil {
			return err
		}
		var err error
		s.flags.VisitAll(func(f *pflag.Flag) {
			value := "`" + written(f, f.DefValue) + "`"
			if rule(f) != "" {
				value = ""
			}
			if err == nil {
				_, err = fmt.Fprintf(w, "| `%s` | %s | %s |\n", f.Name, value, sentence(f.Usage))
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// written is a value of f as the file has it. What is no list is given as the
// flag prints it.
func written(f *pflag.Flag, value string) string {
	if _, many := f.Value.(pflag.SliceValue); many {
		words := strings.FieldsFunc(strings.Trim(value, "[]"), func(r rune) bool { return r == ',' })
		for i, w := range words {
			if f.Value.Type() != "uintSlice" {
				words[i] = strconv.Quote(w)
			}
		}
		return "[" + strings.Join(words, ", ") + "]"
	}
	if kindOf(f) != kindText {
		return value
	}
	if d, err := time.ParseDuration(value); err == nil {
		value = duration(d)
	}
	return strconv.Quote(value)
}

// duration is d without the parts that are zero.
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// sentence makes a sentence of what a flag's help says.
func sentence(usage string) string {
	return strings.ToUpper(usage[:1]) + usage[1:] + "."
}

// comment is text as comments of lines that are not too long.
func comment(text string) string {
	const width = 78
	var b strings.Builder
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return b.String() + line + "\n"
}
