package setup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/emberd/emberd/internal/debstrap"
	"github.com/emberd/emberd/internal/kernel"
	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/digest"
	"github.com/emberd/emberd/internal/x/progress"
)

// debianSuite is the Debian release that kernels of the pinned series are of.
const debianSuite = "bookworm"

// debianPackage is something to fetch from Debian: a pinned version, or what may
// stand in for it when the archive has dropped that.
type debianPackage struct {
	what               string // for people
	name, version, sum string
	// prefix is what the names of the series begin with, and series matches
	// them. The highest number that it captures is the newest.
	prefix string
	series *regexp.Regexp
	// suitePackage depends on the newest of the series in debianSuite.
	suitePackage string
}

// fetch puts the package into work and returns its path. Whatever its version,
// apt has verified it against the archive's signed index. It is the pinned
// version where that can be had, else the newest of the series.
func (p debianPackage) fetch(ctx context.Context, work string, report progress.Func) (string, error) {
	report.Step("fetching %s", p.what)
	pinned := p.name + "=" + p.version
	deb, err := p.download(ctx, work, pinned)
	if err == nil || ctx.Err() != nil {
		return deb, err
	}
	if err := aptUpdate(ctx, report); err != nil {
		return "", err
	}
	report.Step("fetching %s", p.what)
	deb, err = p.download(ctx, work, pinned)
	if err == nil || ctx.Err() != nil {
		return deb, err
	}
	errs := []error{err}
	if name, err := p.newest(ctx); err != nil {
		errs = append(errs, err)
	} else if name != "" {
		report.Step("fetching %s, since %s is not to be had", name, p.version)
		deb, err := p.download(ctx, work, name)
		if err == nil || ctx.Err() != nil {
			return deb, err
		}
		errs = append(errs, err)
	}
	// This host's own sources have no such package: it is not Debian 12.
	report.Step("fetching %s from Debian %s", p.what, debianSuite)
	deb, err = p.debstrap(ctx, work)
	if err != nil {
		return "", errors.Join(append(errs, err)...)
	}
	return deb, nil
}

// download fetches one package into dir, as this host's apt is configured.
func (p debianPackage) download(ctx context.Context, dir, pkg string) (string, error) {
	_, err := command.Cmd{Name: "apt-get", Args: []string{"download", "--quiet", pkg}, Dir: dir}.Run(ctx)
	if err != nil {
		return "", err
	}
	return p.only(dir)
}

// debstrap fetches the newest package of the series from Debian itself.
func (p debianPackage) debstrap(ctx context.Context, work string) (string, error) {
	archives, err := debstrap.Extract(ctx, debstrap.Request{
		Suite: debianSuite, Packages: []string{p.suitePackage, "usr-is-merged"},
		Tree: filepath.Join(work, "debian"), Tmp: work,
	})
	if err != nil {
		return "", err
	}
	return p.only(archives)
}

// only returns the one package of the series in dir.
func (p debianPackage) only(dir string) (string, error) {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return "", err
	}
	debs = slices.DeleteFunc(debs, func(path string) bool {
		name, _, _ := strings.Cut(filepath.Base(path), "_")
		return !p.series.MatchString(name)
	})
	if len(debs) != 1 {
		return "", fmt.Errorf("want one %s* package in %s, have %q", p.prefix, dir, debs)
	}
	return debs[0], nil
}

// newest returns the newest package in apt's index that may stand in for the
// pinned one, or "".
func (p debianPackage) newest(ctx context.Context) (string, error) {
	out, err := command.Run(ctx, "apt-cache", "pkgnames", p.prefix)
	if err != nil {
		return "", err
	}
	return p.newestOf(strings.Fields(string(out))), nil
}

func (p debianPackage) newestOf(names []string) string {
	best, bestNumber := "", -1
	for _, name := range names {
		m := p.series.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if n, err := strconv.Atoi(m[1]); err == nil && n > bestNumber {
			best, bestNumber = name, n
		}
	}
	return best
}

// unpack puts the files of the fetched package deb into the directory tree, and
// returns what there is to record about it.
func (p debianPackage) unpack(ctx context.Context, deb, tree string) (kernel.Record, error) {
	rec := kernel.Record{Pin: p.version}
	var err error
	if rec.SHA256, err = digest.File(deb); err != nil {
		return rec, err
	}
	if rec.Package, err = debField(ctx, deb, "Package"); err != nil {
		return rec, err
	}
	if rec.Version, err = debField(ctx, deb, "Version"); err != nil {
		return rec, err
	}
	if rec.Package == p.name && rec.Version == p.version && rec.SHA256 != p.sum {
		return rec, fmt.Errorf("%s has sha256 %s, want %s", filepath.Base(deb), rec.SHA256, p.sum)
	}
	_, err = command.Run(ctx, "dpkg-deb", "--extract", deb, tree)
	return rec, err
}

func debField(ctx context.Context, deb, field string) (string, error) {
	out, err := command.Run(ctx, "dpkg-deb", "--field", deb, field)
	return strings.TrimSpace(string(out)), err
}
