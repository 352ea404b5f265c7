// Package packs holds the definitions of the language packs, one TOML file
// each, base.toml, which every pack includes, and the scripts that start
// interpreters ahead of code. They are data: package pack gives them a meaning,
// and each field is explained there.
package packs

import "embed"

// Files are the definitions and their scripts.
//
//go:embed *.toml node/*.js python/*.py
var Files embed.FS
