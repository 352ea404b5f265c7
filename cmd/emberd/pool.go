package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/emberd/emberd/internal/provision/pool"
)

// poolFlag adds the flag for how many microVMs are kept ready. It may be given
// once for each pack.
func poolFlag(f *pflag.FlagSet, bounds *map[string]pool.Bounds) {
	f.Var(poolValue{bounds}, "pool", "keep N microVMs of a pack ready, and up to MAX (default twice N) when they are asked for faster; "+
		"0 for none")
}

// poolValue is a map of bounds as the value of a flag.
type poolValue struct{ bounds *map[string]pool.Bounds }

func (v poolValue) Type() string { return "PACK=N[:MAX]" }

func (v poolValue) String() string {
	if v.bounds == nil {
		return ""
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(*v.bounds)) {
		b := (*v.bounds)[name]
		all = append(all, fmt.Sprintf("%s=%d:%d", name, b.Min, b.Max))
	}
	return strings.Join(all, ",")
}

// Append, Replace and GetSlice make it a list, as files and the environment have
// it.
func (v poolValue) Append(s string) error { return v.Set(s) }

// Replace forgets what there was.
func (v poolValue) Replace(all []string) error {
	*v.bounds = make(map[string]pool.Bounds)
	for _, s := range all {
		if err := v.Set(s); err != nil {
			return err
		}
	}
	return nil
}

// GetSlice returns the bounds one by one.
func (v poolValue) GetSlice() []string {
	return strings.FieldsFunc(v.String(), func(r rune) bool { return r == ',' })
}

func (v poolValue) Set(s string) error {
	name, counts, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not PACK=N[:MAX]", s)
	}
	least, most, bounded := strings.Cut(counts, ":")
	n, err := strconv.ParseUint(least, 10, 16)
	if err != nil {
		return fmt.Errorf("%q is no number of microVMs", least)
	}
	b := pool.Bounds{Min: int(n), Max: 2 * int(n)}
	if bounded {
		if n, err = strconv.ParseUint(most, 10, 16); err != nil {
			return fmt.Errorf("%q is no number of microVMs", most)
		}
		b.Max = int(n)
	}
	if b.Max < b.Min {
		return fmt.Errorf("at most %d, but %d always", b.Max, b.Min)
	}
	if *v.bounds == nil {
		*v.bounds = make(map[string]pool.Bounds)
	}
	(*v.bounds)[name] = b
	return nil
}
