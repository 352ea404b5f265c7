#!/usr/bin/env bash
# Runs the tests of real microVMs inside the machine.
#
#   real.sh          every test, in two machines side by side: a machine has one
#                    vCPU, and this uses two of the host's
#   real.sh FLAG...  one machine, with these flags of a test binary
#
# With FLAG only those of ./test/real are run, not those of internal/egress, which
# need no microVM but a kernel with all of nftables.
#
# With KERNEL=build the guests run the kernel that setup builds, with DATA_DIR
# everything is kept there.
set -euo pipefail
cd "$(dirname "$0")/.."

sudo=
[[ $EUID -eq 0 ]] || sudo=sudo
export EMBERD_DATA_DIR=${DATA_DIR:-/var/lib/emberd}
kernel=${KERNEL:-} # empty is the one that is installed
$sudo bin/emberctl --data-dir "$EMBERD_DATA_DIR" setup ${kernel:+--kernel="$kernel"}

out=$(mktemp -d)
machines=()
finish() {
	for m in "${machines[@]}"; do bin/emberctl machine stop --name "$m" || true; done
	rm -rf "$out"
}
trap finish EXIT

# Stripped, because as PID 1 of some microVMs it has to fit their memory.
CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$out/real.test" ./test/real
CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$out/egress.test" ./internal/egress

# run MACHINE TEST FLAG... runs the tests of a binary in a machine. Emulated
# virtualisation hangs once in a great while, whatever runs in it; emberctl says so
# with the status 125, and then the tests run once more. A test that fails is not
# run again.
run() {
	local status=0
	run_once "$@" || status=$?
	if [[ $status -eq 125 ]]; then
		echo "== the machine failed and not a test: once more"
		status=0
		run_once "$@" || status=$?
	fi
	return "$status"
}

run_once() { # MACHINE TEST FLAG...
	local m=$1 test=$2
	shift 2
	bin/emberctl machine start --name "$m" --listen '' || return
	bin/emberctl machine exec --name "$m" -- "$out/$test.test" -real \
		-test.v -test.timeout 60m "$@"
}

if [[ $# -gt 0 ]]; then
	machines=(test-a)
	run test-a real -kernel "$kernel" "$@"
	exit
fi

# The two halves take about as long as each other.
long='^(TestHundredLives|TestJailBrokenAtEachStep|TestResidueAndSecrets|TestWarmInterpreterIsThePlainOne|TestEgress)$'
machines=(test-a test-b)
run test-a real -kernel "$kernel" -test.run "$long" >"$out/a.log" 2>&1 &
a=$!
status=0
run test-b egress -test.run '^TestReal' 2>&1 || status=$?
run test-b real -kernel "$kernel" -test.skip "$long" 2>&1 || status=$?
wait "$a" || status=$?
cat "$out/a.log"
exit "$status"
