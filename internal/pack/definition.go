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
	// CodeFlag is the interpreter's option that is followed by code, and FileFlag
	// what it needs before a file of code that has no name; most need nothing.
	CodeFlag string `toml:"code_flag"`
	FileFlag string `toml:"file_flag"`
	// Warm is how the interpreter is started ahead of code; without it, it is
	// not.
	Warm *WarmUp `toml:"warm"`
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
	// Scripts are files too; their values are names of files that lie beside the
	// definitions.
	Scripts map[string]string `toml:"scripts"`
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

// The kinds of warm-up: a process that forks one for each program, and a process
// that is used for one program. docs/PROTOCOL.md tells what both have to do.
const (
	ForkServer = "forkserver"
	Prestart   = "prestart"
)

// WarmUp starts an interpreter ahead of the code it will run.
type WarmUp struct {
	Kind string   `toml:"kind" json:"kind"`
	Argv []string `toml:"argv" json:"argv"`
	// Watch are the files and directories that the interpreter reads as it starts.
	Watch []string `toml:"watch" json:"watch,omitempty"`
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
		d, err := parseDefinition(files, base, own)
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

func parseDefinition(files fs.FS, base, own []byte) (Definition, error) {
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
	d.CodeFlag = cmp.Or(d.CodeFlag, defaultCodeFlag)
	d.Links = merge(b.Links, d.Links)
	d.Files = merge(b.Files, d.Files)
	d.Commands = slices.Concat(b.Commands, d.Commands)
	d.Remove = slices.Concat(b.Remove, d.Remove)
	d.Directories = slices.Concat(b.Directories, d.Directories)
	d.Checks = slices.Concat(b.Checks, d.Checks)

	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "builder %d, base %d bytes\n%s%s", builderVersion, len(base), base, own)
	for _, name := range slices.Sorted(maps.Keys(d.Scripts)) {
		script, err := fs.ReadFile(files, d.Scripts[name])
		if err != nil {
			return Definition{}, fmt.Errorf("script %s: %w", name, err)
		}
		_, _ = fmt.Fprintf(sum, "script %s, %d bytes\n%s", name, len(script), script)
		d.Files = merge(d.Files, map[string]string{name: string(script)})
	}
	d.digest = hex.EncodeToString(sum.Sum(nil))
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

// defaultCodeFlag is what -c is to most interpreters.
const defaultCodeFlag = "-c"

// validInterpreter is what fits on a kernel command line as it stands, and
// validArgument what does as part of a list.
var (
	validInterpreter = regexp.MustCompile(`^[A-Za-z0-9._/+-]+$`)
	validArgument    = regexp.MustCompile(`^[A-Za-z0-9._/+=:-]*$`)
)

// maxWarmUp bounds a warm-up on the kernel command line, in bytes.
const maxWarmUp = 512

// validateCode reports what is wrong with how code gets into the interpreter.
func validateCode(codeFlag, fileFlag string, warm *WarmUp) error {
	for _, flag := range []string{codeFlag, fileFlag} {
		if !validArgument.MatchString(flag) {
			return fmt.Errorf("invalid flag %q", flag)
		}
	}
	if warm == nil {
		return nil
	}
	if warm.Kind != ForkServer && warm.Kind != Prestart {
		return fmt.Errorf("invalid kind of warm-up %q", warm.Kind)
	}
	if len(warm.Argv) == 0 || warm.Argv[0] == "" {
		return errors.New("a warm-up without argv")
	}
	size := 0
	for _, arg := range warm.Argv {
		if !validArgument.MatchString(arg) {
			return fmt.Errorf("invalid argument %q of the warm-up", arg)
		}
		size += len(arg) + 1
	}
	for _, path := range warm.Watch {
		if !filepath.IsAbs(path) || !validArgument.MatchString(path) {
			return fmt.Errorf("invalid path %q that the warm-up watches", path)
		}
		size += len(path) + 1
	}
	if size > maxWarmUp {
		return fmt.Errorf("the warm-up has %d bytes of arguments, more than %d", size, maxWarmUp)
	}
	return nil
}

func (d Definition) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(validName.MatchString(d.Name), "invalid name %q", d.Name)
	check(validInterpreter.MatchString(d.Interpreter), "invalid interpreter %q", d.Interpreter)
	if err := validateCode(d.CodeFlag, d.FileFlag, d.Warm); err != nil {
		errs = append(errs, err)
	}
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
