package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

// Load gives the settings the values of the file at path, if path is not empty,
// and of the environment. Those that the command line gave stay as they are.
// On error some may have been given and others not.
func (t *Table) Load(path string, getenv func(string) string) error {
	for f := range t.All() {
		if f.Changed {
			t.from[f.Name] = origin{FromFlag, "--" + f.Name}
		}
	}
	if err := t.loadEnvironment(getenv); err != nil {
		return err
	}
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return t.loadFile(path, text)
}

// loadEnvironment takes what the environment has. An empty variable is as good
// as none: that is how shells and units take one back.
func (t *Table) loadEnvironment(getenv func(string) string) error {
	for f := range t.All() {
		name := t.variable(f.Name)
		value := getenv(name)
		if f.Changed || value == "" {
			continue
		}
		if err := give(f, strings.Split(value, ",")); err != nil {
			return fmt.Errorf("environment variable %s: %w", name, err)
		}
		t.from[f.Name] = origin{FromEnvironment, name}
	}
	return nil
}

// loadFile takes what is in text, the content of the file at path. It reports
// every line that is wrong, not only the first.
func (t *Table) loadFile(path string, text []byte) error {
	values := make(map[string]any)
	if err := toml.Unmarshal(text, &values); err != nil {
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, _ := at.Position()
			return fmt.Errorf("%s:%d: %s", path, line, strings.TrimPrefix(at.Error(), "toml: "))
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	lines := keyLines(text)
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(values), func(a, b string) int { return lines[a] - lines[b] }) {
		place := fmt.Sprintf("%s:%d", path, lines[key])
		f := t.lookup(key)
		if f == nil {
			errs = append(errs, fmt.Errorf("%s: %w", place, t.unknown(key)))
			continue
		}
		given, err := words(f, values[key])
		if err == nil && !f.Changed {
			if err = give(f, given); err == nil {
				t.from[key] = origin{FromFile, place}
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", place, key, err))
		}
	}
	return errors.Join(errs...)
}

// keyLines returns the line of each key of a document that has been parsed
// before. A decoder that knows no key at all reports every one, with its place.
func keyLines(text []byte) map[string]int {
	lines := make(map[string]int)
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&struct{}{})
	if all, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		for _, e := range all.Errors {
			if key := e.Key(); len(key) > 0 && lines[key[0]] == 0 {
				lines[key[0]], _ = e.Position()
			}
		}
	}
	return lines
}

// unknown is what to say about a key that is no setting.
func (t *Table) unknown(key string) error {
	const far = 4 // a word with more slips than that is another word
	best, near := far, ""
	for f := range t.All() {
		if d := distance(key, f.Name); d < best {
			best, near = d, f.Name
		}
	}
	if near == "" {
		return fmt.Errorf("unknown key %q; `emberd config explain` lists those there are", key)
	}
	return fmt.Errorf("unknown key %q; did you mean %s?", key, near)
}

// distance is how many letters have to be put in, left out or replaced to make b
// of a; an underscore is as good as a hyphen.
func distance(a, b string) int {
	a = strings.ReplaceAll(strings.ToLower(a), "_", "-")
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before = row[j+1]
			row[j+1] = min(cost, before+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// words returns a value of the file as the words that f takes. What would
// only look like the right kind, such as a number in quotes, is refused: it is
// written in one way.
func words(f *pflag.Flag, value any) ([]string, error) {
	if _, many := f.Value.(pflag.SliceValue); many {
		list, ok := value.([]any)
		if !ok {
			return nil, errors.New("takes a list: [ … ]")
		}
		out := make([]string, len(list))
		for i, v := range list {
			switch v.(type) {
			case string, int64:
				out[i] = fmt.Sprint(v)
			default:
				return nil, fmt.Errorf("%v is none of what may be in the list", v)
			}
		}
		return out, nil
	}
	switch v := value.(type) {
	case bool:
		if kindOf(f) == kindBool {
			return []string{strconv.FormatBool(v)}, nil
		}
	case int64:
		if kindOf(f) == kindNumber {
			return []string{strconv.FormatInt(v, 10)}, nil
		}
	case string:
		if kindOf(f) == kindText {
			return []string{v}, nil
		}
	}
	return nil, fmt.Errorf("takes %s", kindOf(f))
}

// give gives f a value, of which only a list takes several parts.
func give(f *pflag.Flag, parts []string) error {
	list, many := f.Value.(pflag.SliceValue)
	var err error
	if many {
		err = list.Replace(parts)
	} else {
		err = f.Value.Set(strings.Join(parts, ","))
	}
	if err == nil {
		f.Changed = true
	}
	return err
}

// kind is how a value is written in the file.
type kind string

const (
	kindBool   kind = "true or false"
	kindNumber kind = "a whole number, without quotes"
	kindText   kind = `text in quotes: "…"`
)

// kindOf returns how the value of f is written, if it is not a list.
func kindOf(f *pflag.Flag) kind {
	switch f.Value.Type() {
	case "bool":
		return kindBool
	case "int", "uint":
		return kindNumber
	}
	return kindText
}
