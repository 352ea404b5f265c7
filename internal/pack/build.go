package pack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/cleanup"
	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/digest"
	"github.com/emberd/emberd/internal/x/lockfile"
	"github.com/emberd/emberd/internal/x/progress"
	"github.com/emberd/emberd/internal/x/swapdir"
)

// builderVersion changes when this code would make another image of the same
// definition, so that images made by an older builder count as out of date.
const builderVersion = 1

// ErrBusy is returned by [Build] while another process builds packs in the same
// data directory.
var ErrBusy = errors.New("another build of packs is running")

// Build makes the image of def and puts it, with its manifest, under its name
// in data, where it replaces an older one in one step. The same versions of the
// Debian packages give the same bytes. Sandboxes that run on the replaced image
// keep it. When Build fails or ctx ends, nothing is changed.
//
// It needs root, since programs of the image run in a chroot, and the Debian
// tools mmdebstrap and mksquashfs.
func Build(ctx context.Context, def Definition, data paths.Data, report progress.Func) (Manifest, error) {
	if os.Geteuid() != 0 {
		return Manifest{}, fmt.Errorf("build pack %s: this needs root: run it with sudo", def.Name)
	}
	m, err := buildInto(ctx, def, data, report)
	if err != nil {
		return Manifest{}, fmt.Errorf("build pack %s: %w", def.Name, err)
	}
	return m, nil
}

func buildInto(ctx context.Context, def Definition, data paths.Data, report progress.Func) (_ Manifest, err error) {
	var undo cleanup.Stack
	defer func() { err = errors.Join(err, undo.Unwind(ctx)) }()

	release, err := lockBuilds(data)
	if err != nil {
		return Manifest{}, err
	}
	undo.Add("lock", func(context.Context) error { return release() })
	// An image that is built stands in a directory as [Load] wants it, so that
	// one rename of the directory shows both files.
	work, err := os.MkdirTemp(data.Packs(), partialPrefix+def.Name+"-*")
	if err != nil {
		return Manifest{}, err
	}
	undo.Add("working directory", func(context.Context) error { return os.RemoveAll(work) })

	m, err := build(ctx, def, work, report)
	if err != nil {
		return Manifest{}, err
	}
	return m, swapdir.Publish(filepath.Join(work, outDir), filepath.Dir(data.PackRootfs(def.Name)))
}

// The parts of a working directory: the image's files, what becomes the pack's
// directory, and room for the tools' own temporary files.
const (
	partialPrefix = ".partial-"
	treeDir       = "tree"
	outDir        = "out"
	tmpDir        = "tmp"
)

func build(ctx context.Context, def Definition, work string, report progress.Func) (Manifest, error) {
	tree, out, tmp := filepath.Join(work, treeDir), filepath.Join(work, outDir), filepath.Join(work, tmpDir)
	for _, dir := range []string{out, tmp} {
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // out becomes the pack: everybody may read it
			return Manifest{}, err
		}
	}
	tools, err := toolVersions(ctx)
	if err != nil {
		return Manifest{}, err
	}
	report.Step("pack %s: fetching and unpacking Debian packages", def.Name)
	contents, err := unpack(ctx, def, tree, tmp)
	if err != nil {
		return Manifest{}, err
	}
	report.Step("pack %s: arranging files", def.Name)
	if err := arrange(ctx, def, tree); err != nil {
		return Manifest{}, err
	}
	report.Step("pack %s: checking", def.Name)
	for _, c := range def.Checks {
		if err := runInside(ctx, tree, c.Argv); err != nil {
			return Manifest{}, err
		}
	}
	report.Step("pack %s: compressing", def.Name)
	// The names a pack's files have are made by paths.Data alone.
	names := paths.Data("")
	rootfs := filepath.Join(out, filepath.Base(names.PackRootfs(def.Name)))
	if err := compress(ctx, tree, rootfs); err != nil {
		return Manifest{}, err
	}
	image, err := os.Stat(rootfs)
	if err != nil {
		return Manifest{}, err
	}
	sum, err := digest.File(rootfs)
	if err != nil {
		return Manifest{}, err
	}
	if limit := def.SizeLimitMB * 1_000_000; image.Size() > limit {
		return Manifest{}, fmt.Errorf("the image has %d bytes, %d more than its limit of %d MB",
			image.Size(), image.Size()-limit, def.SizeLimitMB)
	}
	m := Manifest{
		Name: def.Name, Description: def.Description,
		Interpreter: def.Interpreter, CodeFlag: def.CodeFlag, FileFlag: def.FileFlag, Warm: def.Warm,
		Digest: sum, Size: image.Size(), Definition: def.Digest(), Contents: contents, BuiltWith: tools,
	}
	manifest := filepath.Join(out, filepath.Base(names.PackManifest(def.Name)))
	return m, writeManifest(manifest, m)
}

func writeManifest(path string, m Manifest) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644) //nolint:gosec // no secret
}

// lockBuilds makes the pack directory, takes the lock of those who build in it
// and deletes what a killed build has left there.
func lockBuilds(data paths.Data) (release func() error, err error) {
	release, err = lockfile.Take(filepath.Join(data.Packs(), ".lock"))
	if errors.Is(err, lockfile.ErrHeld) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(data.Packs(), partialPrefix+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return nil, errors.Join(err, release())
	}
	return release, nil
}

// toolVersions returns what made an image beside its definition: mksquashfs
// decides about its bytes.
func toolVersions(ctx context.Context) ([]string, error) {
	debstrap, err := command.Run(ctx, "mmdebstrap", "--version")
	if err != nil {
		return nil, err
	}
	squash, err := command.Run(ctx, "mksquashfs", "-version")
	if err != nil {
		return nil, err
	}
	return []string{firstLine(debstrap), firstLine(squash)}, nil
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
