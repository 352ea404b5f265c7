package setup

import (
	"context"
	"path/filepath"
	"regexp"

	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/progress"
	"github.com/emberd/emberd/internal/x/source"
	config "github.com/emberd/emberd/kernel"
)

// sourcePackage is the source of [kernelPackage].
func sourcePackage() debianPackage {
	return debianPackage{
		what: "the kernel's source", name: "linux-source-6.1", version: "6.1.192-2",
		sum:    "ae95fe63d4c553f8d0e6c86cb1ab566f3894a43743eb19ab585cd97d82f26514",
		prefix: "linux-source-6.1",
		// One package whose versions follow each other.
		series:       regexp.MustCompile(`^linux-source-6\.(1)$`),
		suitePackage: "linux-source-6.1",
	}
}

// buildTools is what building a kernel takes. It is installed only when one is
// to be built.
func buildTools() []tool {
	return []tool{
		{"gcc", "gcc"},
		{"/usr/include/stdio.h", "libc6-dev"},
		{"make", "make"},
		{"flex", "flex"},
		{"bison", "bison"},
		{"bc", "bc"},
		{"xz", "xz-utils"},
		{"/usr/include/gelf.h", "libelf-dev"}, // for the kernel's objtool
	}
}

func (c Config) builtKernelMissing() (string, error) {
	rec, err := source.Read[kernel.Record](c.Data.GuestKernel())
	if err != nil {
		return "", err
	}
	switch {
	case rec.Build == nil:
		return "not built", nil
	case rec.Pin != sourcePackage().version:
		return "another version is wanted", nil
	case rec.Build.Config != kernel.ConfigDigest(config.GuestConfig):
		return "another configuration is wanted", nil
	case rec.Parts != kernelParts(kernel.GuestModules()):
		return "other modules are wanted", nil
	}
	return incomplete(guestFiles(c.Data)), nil
}

// buildKernel builds a kernel for sandboxes from its source.
func (c Config) buildKernel(ctx context.Context, work string, report progress.Func) error {
	if pkgs := missingPackages(buildTools()); len(pkgs) > 0 {
		if err := aptInstall(ctx, pkgs, report); err != nil {
			return err
		}
	}
	pkg := sourcePackage()
	deb, err := pkg.fetch(ctx, work, report)
	if err != nil {
		return err
	}
	report.Step("unpacking the kernel's source")
	tree := filepath.Join(work, "tree")
	rec, err := pkg.unpack(ctx, deb, tree)
	if err != nil {
		return err
	}
	archive := filepath.Join(tree, "usr", "src", rec.Package+".tar.xz")
	if _, err := command.Run(ctx, "tar", "--extract", "--file", archive, "--directory", work); err != nil {
		return err
	}
	report.Step("building the kernel, which takes some minutes")
	src := filepath.Join(work, rec.Package)
	build, err := kernel.Compile(ctx, src, config.GuestConfig)
	if err != nil {
		return err
	}
	rec.Build, rec.Parts = &build, kernelParts(kernel.GuestModules())
	fresh := paths.Data(filepath.Join(work, "data"))
	if err := kernel.InstallBuilt(src, guestFiles(fresh)); err != nil {
		return err
	}
	return publish(fresh.GuestKernel(), c.Data.GuestKernel(), rec)
}
