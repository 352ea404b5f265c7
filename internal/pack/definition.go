package pack

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/emberd/emberd/packs"
)

// Definition says what makes an image. It is read from NAME.toml, and the lists
// of base.toml go before its own.
type Definition struct {
	Name        string `toml:"name"`
	Description string `toml:"description"`
	Interpreter string `toml:"interpreter"`
	// Suite is the Debian release that the packages come from.
	Suite string `toml:"suite"`
	// SizeLimitMB is what the image may be at most, in units of 1,000,000 bytes.
	SizeLimitMB int64 `toml:"size_limit_mb"`
	// Packages are unpacked with all they depend on. None of their maintainer
	// scripts runs; what those would have done and is needed stands below.
	Packages []string `toml:"packages"`
	// Links and Files are made next. Their keys are paths from the image's root,
	// their values a link's target and a file's content.
	Links map[string]string `toml:"links"`
	Files map[string]string `toml:"files"`
	// Commands then run inside the image, in order.
	Commands []Command `toml:"commands"`
	// Remove is deleted after that.
	Remove []Removal `toml:"remove"`
	// Directories are made at the end, empty or with what is in them.
	Directories []Directory `toml:"directories"`
	// Checks then run inside the image; one that fails stops the build. They
	// leave nothing behind.
	Checks []Command `toml:"checks"`

	digest string
}

// Command is a program of the image.
type Command struct {
	Argv []string `toml:"argv"`
}

// Removal is a list of patterns as in [path.Match], from the image's root, and
// the reason why nobody misses what they match.
type Removal struct {
	Why   string   `toml:"why"`
	Paths []string `toml:"paths"`
}

// Directory is a directory with its permissions, 0755 if it states none.
type Directory struct {
	Path string `toml:"path"`
	Mode uint32 `toml:"mode"`
}

// Digest identifies everything an image is made from, except the versions of
// the packages: when it differs from a manifest's, the image is out of date.
func (d Definition) Digest() string { return d.digest }

const baseFile = "base.toml"

// Definitions returns the definitions that this program carries, sorted by
// name.
func Definitions() ([]Definition, error) { return readDefinitions(packs.Files) }

// Find returns the definition called name.
func Find(defs []Definition, name string) (Definition, error) {
	i := slices.IndexFunc(defs, func(d Definition) bool { return d.Name == name })
	if i < 0 {
		var names []string
		for _, d := range defs {
			names = append(names, d.Name)
		}
		return Definition{}, fmt.Errorf("no definition of a pack %q: there are %s", name, strings.Join(names, ", "))
	}
	return defs[i], nil
}

func readDefinitions(files fs.FS) ([]Definition, error) {
	base, err := fs.ReadFile(files, baseFile)
	if err != nil {
		return nil, fmt.Errorf("read pack definitions: %w", err)
	}
	names, err := fs.Glob(files, "*.toml")
	if err != nil {
		return nil, fmt.Errorf("list pack definitions: %w", err)
	}
	var defs []Definition
	for _, file := range names {
		if file == baseFile {
			continue
		}
		own, err := fs.ReadFile(files, file)
		if err != nil {
			return nil, fmt.Errorf("read pack definition: %w", err)
		}
		d, err := parseDefinition(base, own)
		if err == nil && d.Name+".toml" != file {
			err = fmt.Errorf("the name in it is %q", d.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("pack definition %s: %w", file, err)
		}
		defs = append(defs, d)
	}
	return defs, nil
}

func parseDefinition(base, own []byte) (Definition, error) {
	b, err := decode(base)
	if err != nil {
		return Definition{}, fmt.Errorf("%s: %w", baseFile, err)
	}
	d, err := decode(own)
	if err != nil {
		return Definition{}, err
	}
	d.Suite = cmp.Or(d.Suite, b.Suite)
	d.Packages = slices.Concat(b.Packages, d.Packages)
	d.Links = merge(b.Links, d.Links)
	d.Files = merge(b.Files, d.Files)
	d.Commands = slices.Concat(b.Commands, d.Commands)
	d.Remove = slices.Concat(b.Remove, d.Remove)
	d.Directories = slices.Concat(b.Directories, d.Directories)
	d.Checks = slices.Concat(b.Checks, d.Checks)

	sum := sha256.Sum256(fmt.Appendf(nil, "builder %d, base %d bytes\n%s%s", builderVersion, len(base), base, own))
	d.digest = hex.EncodeToString(sum[:])
	return d, d.validate()
}

func decode(raw []byte) (Definition, error) {
	var d Definition
	dec := toml.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return Definition{}, fmt.Errorf("unknown field:\n%s", strict.String())
		}
		return Definition{}, err
	}
	return d, nil
}

// merge returns the entries of both maps; own wins.
func merge(base, own map[string]string) map[string]string {
	all := maps.Clone(base)
	if all == nil {
		all = make(map[string]string, len(own))
	}
	maps.Copy(all, own)
	return all
}

// validName is what a pack may be called: it becomes a directory.
var validName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// validInterpreter is what fits on a kernel command line as it stands.
var validInterpreter = regexp.MustCompile(`^[A-Za-z0-9._/+-]+$`)

func (d Definition) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(validName.MatchString(d.Name), "invalid name %q", d.Name)
	check(validInterpreter.MatchString(d.Interpreter), "invalid interpreter %q", d.Interpreter)
	check(d.Suite != "", "no suite")
	check(d.SizeLimitMB > 0, "no size limit")
	check(len(d.Packages) > 0, "no packages")
	for _, p := range slices.Concat(slices.Collect(maps.Keys(d.Links)), slices.Collect(maps.Keys(d.Files))) {
		check(filepath.IsLocal(p), "path %q is not inside the image", p)
	}
	for _, dir := range d.Directories {
		check(filepath.IsLocal(dir.Path), "path %q is not inside the image", dir.Path)
		check(dir.Mode&^0o7777 == 0, "directory %s: invalid mode %#o", dir.Path, dir.Mode)
	}
	for _, c := range slices.Concat(d.Commands, d.Checks) {
		check(len(c.Argv) > 0, "a command without argv")
	}
	for _, r := range d.Remove {
		check(r.Why != "", "no reason to remove %v", r.Paths)
		for _, p := range r.Paths {
			_, err := path.Match(p, "")
			check(err == nil && filepath.IsLocal(p), "invalid pattern %q", p)
		}
	}
	return errors.Join(errs...)
}
