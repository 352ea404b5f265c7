#!/usr/bin/env bash
# Runs `emberctl bench` inside a machine of its own, beside an emberd that is
# started there with its defaults. The report goes to standard output, everything
# else to standard error; the machine is stopped in every case.
#
#   bench.sh                                   the table
#   bench.sh --json >new.json                  the report for machines
#   bench.sh --compare /dev/stdin <old.json    what has changed: files of this
#                                              host are not in the machine
set -euo pipefail
cd "$(dirname "$0")/.."

sudo=
[[ $EUID -eq 0 ]] || sudo=sudo
$sudo bin/emberctl setup >&2

machine=bench
trap 'bin/emberctl machine stop --name "$machine" >&2' EXIT
# One that was left behind may hold other programs.
bin/emberctl machine stop --name "$machine" >&2
# emberd is wanted inside; any port will do outside.
bin/emberctl machine start --name "$machine" --listen 127.0.0.1:0 >&2
bin/emberctl machine exec --name "$machine" --no-copy -- emberctl bench "$@"
