package pack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/emberd/emberd/internal/paths"
	"github.com/emberd/emberd/internal/x/digest"
	"github.com/emberd/emberd/internal/x/regular"
)

// Manifest describes a built image. It holds nothing that differs between two
// builds of the same inputs.
type Manifest struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Interpreter string `json:"interpreter"`
	// CodeFlag, FileFlag and Warm are as in the [Definition].
	CodeFlag string  `json:"code_flag,omitempty"`
	FileFlag string  `json:"file_flag,omitempty"`
	Warm     *WarmUp `json:"warm,omitempty"`
	// Digest is the image's SHA-256 in hex; Size is in bytes.
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// Definition is the digest of the definition the image was built from.
	Definition string `json:"definition"`
	// Contents are the Debian packages in the image, sorted by name.
	Contents []Package `json:"contents"`
	// BuiltWith names the tools that made the image, with their versions.
	BuiltWith []string `json:"built_with"`
}

// Package is a Debian package in an image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// maxManifest is more than the longest manifest has, in bytes.
const maxManifest = 1 << 20

// ReadManifest returns the manifest of the built pack called name. If there is
// none, the error wraps [fs.ErrNotExist].
func ReadManifest(data paths.Data, name string) (Manifest, error) {
	raw, err := regular.ReadFile(data.PackManifest(name), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, fmt.Errorf("pack %s: manifest is missing: %w", name, err)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("pack %s: read manifest: %w", name, err)
	}
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return Manifest{}, fmt.Errorf("pack %s: read manifest %s: %w", name, data.PackManifest(name), err)
	}
	if m.Name != name {
		return Manifest{}, fmt.Errorf("pack %s: manifest %s is of pack %q", name, data.PackManifest(name), m.Name)
	}
	if m.Interpreter == "" {
		return Manifest{}, fmt.Errorf("pack %s: manifest %s names no interpreter", name, data.PackManifest(name))
	}
	if !validInterpreter.MatchString(m.Interpreter) {
		return Manifest{}, fmt.Errorf("pack %s: manifest %s names the interpreter %q", name, data.PackManifest(name), m.Interpreter)
	}
	if err := validateCode(m.CodeFlag, m.FileFlag, m.Warm); err != nil {
		return Manifest{}, fmt.Errorf("pack %s: manifest %s: %w", name, data.PackManifest(name), err)
	}
	return m, nil
}

// Verify hashes the image of p and compares it with the digest in its manifest.
func Verify(p Pack) error {
	got, err := digest.File(p.RootfsPath)
	if err != nil {
		return fmt.Errorf("verify pack %s: %w", p.Name, err)
	}
	if got != p.Digest {
		return fmt.Errorf("verify pack %s: %s has sha256 %s, its manifest says %s",
			p.Name, p.RootfsPath, got, p.Digest)
	}
	return nil
}
