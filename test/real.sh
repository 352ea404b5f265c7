#!/usr/bin/env bash
# Runs the tests of real microVMs inside two machines side by side, one for each
# of this host's cores: a machine has one vCPU. Usage: real.sh [TEST BINARY FLAGS]
set -euo pipefail
cd "$(dirname "$0")/.."

sudo=
[[ $EUID -eq 0 ]] || sudo=sudo
$sudo bin/emberctl setup

out=$(mktemp -d)
machines=(test-a test-b)
finish() {
	for m in "${machines[@]}"; do bin/emberctl machine stop --name "$m" || true; done
	rm -rf "$out"
}
trap finish EXIT

CGO_ENABLED=0 go test -c -o "$out/real.test" ./test/real

# The long test has a machine to itself.
long='^TestHundredBoots$'
run() { # MACHINE FLAG...
	local m=$1
	shift
	bin/emberctl machine start --name "$m" --listen ''
	bin/emberctl machine exec --name "$m" -- "$out/real.test" -real -test.v -test.timeout 15m "$@"
}
run test-a -test.run "$long" "$@" >"$out/a.log" 2>&1 &
a=$!
status=0
run test-b -test.skip "$long" "$@" 2>&1 || status=$?
wait "$a" || status=$?
cat "$out/a.log"
exit "$status"
