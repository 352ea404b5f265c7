#!/usr/bin/env bash
# Runs the tests that need neither root nor KVM, with the race detector.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

need cc gcc libc6-dev # the race detector is linked with it
go test -race ./...
