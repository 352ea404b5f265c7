#!/usr/bin/env bash
# Runs every fuzz test of the tree, three at a time: a minute for what decodes
# bytes that a guest can choose, ten seconds for the others. FUZZTIME, for
# instance 30m, is for all of them.
set -euo pipefail
cd "$(dirname "$0")/.."

# The packages whose fuzz tests are about a guest's bytes, or those of a VMM that
# a guest has taken over.
guests='./api/agent/v1 ./internal/agent ./internal/egress ./internal/firecracker ./internal/vsock ./internal/x/printable ./internal/x/tail'

# targets prints the directory and the name of each fuzz test below the given
# directories.
targets() {
	grep -r --include='*_test.go' '^func Fuzz' "$@" |
		sed -n 's|^\(.*\)/[^/]*_test.go:func \(Fuzz[A-Za-z0-9_]*\)(.*|\1 \2|p' | sort
}

# ran_out tells whether a failed run did not end in an input that fails, which is
# written to testdata, but in Go's own deadline: on a busy host it can be taken for
# the target's when the time is over (golang/go#75804).
ran_out() {
	! grep -q 'Failing input written' "$1" &&
		[[ $(grep -A1 -e '^--- FAIL' "$1" | tail -n +2) == '    context deadline exceeded' ]]
}

# run runs one target for some time, and shows its output if it fails.
run() {
	local time=$1 dir=$2 name=$3 log
	log=$(mktemp)
	# Making inputs smaller is of use to a reader of crashes alone.
	if go test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1s -parallel 1 >"$log" 2>&1 || ran_out "$log"; then
		printf '%-20s %s\n' "$name" "$(grep '^fuzz: elapsed' "$log" | tail -n 1)"
		rm "$log"
	else
		echo "== $name in $dir"
		cat "$log"
		rm "$log"
		return 1
	fi
}
export -f run ran_out

all=$(targets .)
# shellcheck disable=SC2086 # the list is split
guest=$(targets $guests)
{
	sed "s/^/${FUZZTIME:-60s} /" <<<"$guest"
	comm -13 <(echo "$guest") <(echo "$all") | sed "s/^/${FUZZTIME:-10s} /"
} | xargs -P 3 -L 1 bash -c 'run "$@"' run
