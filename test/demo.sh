#!/usr/bin/env bash
# The README's first command: from a fresh clone to a program in a microVM.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*" >&2; }

sudo=
[[ $EUID -eq 0 ]] || sudo=sudo

say "building emberd"
make --no-print-directory build

say "setting up (what is there already is kept)"
$sudo bin/emberctl setup

# An emberd that runs already is used as it is, and left running.
if bin/emberctl info >/dev/null 2>&1; then
	say "using the emberd that runs already"
elif bin/emberctl doctor kvm >/dev/null 2>&1; then
	say "starting emberd on this host's KVM"
	$sudo bin/emberd --on-exit stop 2>emberd.log &
	daemon=$!
	trap '$sudo kill "$daemon" && wait "$daemon"; rm -f emberd.log' EXIT
	until bin/emberctl info >/dev/null 2>&1; do
		kill -0 "$daemon" || { cat emberd.log >&2; exit 1; }
		sleep 0.1
	done
else
	say "starting the machine: this host has no KVM"
	trap 'bin/emberctl machine stop' EXIT
	bin/emberctl machine start
fi

say "emberctl run 'print(6*7)'"
bin/emberctl run 'print(6*7)' </dev/null
