#!/usr/bin/env bash
# What has to hold of the source beside the tests: it is linted, its imports
# point one way, its modules are tidy, its generated code is up to date.
# Usage: check.sh GOLANGCI_LINT_VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

lint=.cache/golangci-lint-$1
if [[ ! -x $lint ]]; then
	echo "== building golangci-lint $1 (once, some minutes)"
	GOBIN="$PWD/.cache/gobin" go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$1"
	mv .cache/gobin/golangci-lint "$lint"
fi
echo "== golangci-lint"
"$lint" run ./...

echo "== import direction"
go test -count=1 ./internal/archtest

echo "== go mod tidy"
go mod tidy -diff

echo "== generated code"
need protoc protobuf-compiler
generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
cp -r api "$generated/before"
go generate ./api/...
diff -r "$generated/before" api
