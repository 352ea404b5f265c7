#!/usr/bin/env bash
# Runs every fuzz test of the tree for FUZZTIME each (default 5s).
set -euo pipefail
cd "$(dirname "$0")/.."

grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
	dir=$(dirname "$file")
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | while read -r name; do
		go test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-5s}"
	done
done
