package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/progress"
)

// A tool is a file of the host that a Debian package brings.
type tool struct {
	// file is an executable to be found on PATH, or an absolute path.
	file string
	pkg  string
}

// debianKeyring is what apt verifies Debian's signatures with. Ubuntu has it as
// a package.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

func (c Config) tools() []tool {
	tools := []tool{
		{"mmdebstrap", "mmdebstrap"},
		{"mksquashfs", "squashfs-tools"},
		{"mke2fs", "e2fsprogs"},
		{debianKeyring, "debian-archive-keyring"},
	}
	if c.Machine {
		tools = append(tools, tool{"qemu-system-x86_64", "qemu-system-x86"})
	}
	return tools
}

// missingPackages returns the packages of those tools that the host lacks.
func missingPackages(tools []tool) []string {
	var missing []string
	for _, t := range tools {
		var err error
		if strings.HasPrefix(t.file, "/") {
			_, err = os.Stat(t.file)
		} else {
			_, err = exec.LookPath(t.file)
		}
		if err != nil {
			missing = append(missing, t.pkg)
		}
	}
	return missing
}

func (c Config) toolsMissing() (string, error) {
	return strings.Join(missingPackages(c.tools()), " "), nil
}

func installTools(c Config) func(context.Context, string, progress.Func) error {
	return func(ctx context.Context, _ string, report progress.Func) error {
		return aptInstall(ctx, missingPackages(c.tools()), report)
	}
}

// aptInstall installs packages and nothing they merely recommend.
func aptInstall(ctx context.Context, pkgs []string, report progress.Func) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("emberctl setup installs Debian packages, and this host has no apt-get: install %s yourself",
			strings.Join(pkgs, " "))
	}
	report.Step("installing %s", strings.Join(pkgs, ", "))
	install := command.Cmd{
		Name: "apt-get",
		Args: slices.Concat([]string{
			"install", "--yes", "--quiet", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120",
		}, pkgs),
		Env: []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"},
	}
	// An interrupted dpkg leaves half-configured packages on the host, so an
	// installation that has begun is waited for.
	whole := context.WithoutCancel(ctx)
	_, err := install.Run(whole)
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	// The package lists are absent in a fresh container, or out of date.
	if err := aptUpdate(ctx, report); err != nil {
		return err
	}
	report.Step("installing %s", strings.Join(pkgs, ", "))
	_, err = install.Run(whole)
	return errors.Join(err, context.Cause(ctx))
}

func aptUpdate(ctx context.Context, report progress.Func) error {
	report.Step("updating the package lists")
	_, err := command.Run(ctx, "apt-get", "update", "--quiet", "-o", "DPkg::Lock::Timeout=120")
	return err
}
