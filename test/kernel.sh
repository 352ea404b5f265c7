#!/usr/bin/env bash
# Builds the guest kernel and runs the tests of real microVMs with it, as real.sh
# does with Debian's. It takes a while and is no part of CI. What is installed
# stays as it is: the built kernel goes into a data directory of its own, beside a
# copy of the rest. Usage: kernel.sh [TEST BINARY FLAGS]
set -euo pipefail
cd "$(dirname "$0")/.."

sudo=
[[ $EUID -eq 0 ]] || sudo=sudo
installed=${DATA_DIR:-/var/lib/emberd}
data=$installed-built
$sudo bin/emberctl --data-dir "$installed" setup
$sudo mkdir -p "$data"
for part in firecracker packs kernel/machine; do
	$sudo rm -rf "${data:?}/$part"
	$sudo mkdir -p "$(dirname "$data/$part")"
	$sudo cp -a "$installed/$part" "$data/$part"
done
KERNEL=build DATA_DIR=$data exec ./test/real.sh "$@"
