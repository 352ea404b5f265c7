// Package packs holds the definitions of the language packs, one TOML file
// each, and base.toml, which every pack includes. They are data: package pack
// gives them a meaning, and each field is explained there.
package packs

import "embed"

// Files are the definitions.
//
//go:embed *.toml
var Files embed.FS
